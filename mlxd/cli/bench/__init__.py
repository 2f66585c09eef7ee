"""`mlxd bench`: how fast a model is on this machine, as its clients see it.

Exit status: 0 done; 1 it failed, or others are being served; 2 wrong usage.
"""

from __future__ import annotations

import argparse
from functools import partial

from mlxd.cli.arguments import Actions, add_action, count

STREAMS = (1, 4, 8)
_MOST_STREAMS = 32
_count = partial(count, digits=7)


def add(commands: Actions[argparse.ArgumentParser]) -> None:
    """Add it to the commands."""
    parser = add_action(
        commands, "bench", "how fast a model is on this machine, as its clients see it", _bench,
        json=False,
    )  # fmt: skip
    parser.add_argument("name", metavar="MODEL", help="as a client would name it")
    parser.add_argument(
        "--streams", type=_streams, metavar="N,N",
        help="answers at one time; 1,4,8, or as many of those as have a slot",
    )  # fmt: skip
    parser.add_argument(
        "--prompt", type=_count, default=512, metavar="N", help="tokens of a prompt; 512"
    )
    parser.add_argument(
        "--tokens", type=_count, default=128, metavar="N", help="tokens of an answer; 128"
    )
    parser.add_argument(
        "--rounds", type=_count, default=3, metavar="N", help="figures are medians of so many; 3"
    )
    parser.add_argument(
        "--limit", type=_count, default=600, metavar="SECONDS",
        help="stop after so long, with the rounds that are whole; 600",
    )  # fmt: skip
    parser.add_argument(
        "--raw", action="store_true",
        help="compare with mlx-lm's own batches, which take the same memory once more",
    )  # fmt: skip
    parser.add_argument(
        "--beside", action="store_true", help="also while others are served, whom that disturbs"
    )
    parser.add_argument(
        "--json", default="", metavar="FILE", help="write the figures there; - is the terminal"
    )
    parser.add_argument("--svg", default="", metavar="FILE", help="draw them there")


def _streams(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isdecimal() and len(part) <= 3 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} are no numbers such as 1,4,8")
    found = tuple(sorted({int(part) for part in parts}))
    if not 0 < found[0] <= found[-1] <= _MOST_STREAMS:
        raise argparse.ArgumentTypeError(
            f"{text!r}: from 1 to {_MOST_STREAMS} streams are measured"
        )
    return found


def _bench(arguments: argparse.Namespace) -> int:
    from mlxd.cli.bench.command import Options, bench

    return bench(
        arguments.policies,
        arguments.state,
        Options(
            model=arguments.name,
            streams=arguments.streams,
            prompt=arguments.prompt,
            tokens=arguments.tokens,
            rounds=arguments.rounds,
            seconds=arguments.limit,
            raw=arguments.raw,
            beside=arguments.beside,
            json=arguments.json,
            svg=arguments.svg,
        ),
    )
