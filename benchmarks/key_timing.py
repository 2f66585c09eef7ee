"""Whether the time that a guessed API key takes says how near it came: look-ups of keys that differ
from a known one from their first character on, from the middle on, or in the last one alone.

python benchmarks/key_timing.py [--guesses 200000] [--keys 1000] [--short] [--out FOLDER]

The guesses are mixed, so that whatever else the machine does meets all kinds alike. Two kinds are
compared by Welch's t-test on the times below one limit, a tenth of all wrong ones beyond it. Exit
status 1 where a guess that came near can be told from one that did not (p <= 0.01) in each of three
rounds. A key that is right may well take longer: whoever sends it is told so.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import report, table
from mlxd.policy.keyring import Key, Keyring, digest_of, new_secret

Json = dict[str, Any]
KINDS = ("far", "half", "near", "right")
_ROUNDS = 3
_SURE = 0.01
_SHORT = 20_000


def main() -> int:
    options = _parser().parse_args()
    found: Json = report.begun()
    guesses = _SHORT if options.short else options.guesses
    rounds = [_round(guesses, options.keys, seed) for seed in range(_ROUNDS)]
    told = {kind: all(one["p"][kind] <= _SURE for one in rounds) for kind in ("half", "near")}
    found |= {"guesses": guesses, "keys": options.keys, "rounds": rounds, "told_apart": told}
    found["problems"] = [
        f"a guess that is {kind} right takes another time than one that is wrong from its beginning"
        for kind, apart in told.items()
        if apart and not options.short
    ]
    title = f"Guesses of API keys, {guesses} in each round, {options.keys} keys known"
    return report.publish(options, "key_timing", found, report.page(title, found, _grid(rounds)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="What the time of a guess says of a key.")
    parser.add_argument("--guesses", type=int, default=200_000, help="of all kinds, in each round")
    parser.add_argument("--keys", type=int, default=1000, help="that are known")
    report.add_options(parser)
    return parser


def _round(guesses: int, count: int, seed: int) -> Json:
    known = [new_secret() for _ in range(count)]
    ring = Keyring(tuple(Key(str(n), "t", digest_of(one), 0.0) for n, one in enumerate(known)))
    chance = random.Random(seed)
    plan = [chance.choice(KINDS) for _ in range(guesses)]
    made = [_guess(kind, chance.choice(known)).encode() for kind in plan]
    asked = [(kind, text.decode()) for kind, text in zip(plan, made, strict=True)]
    times: dict[str, list[int]] = {kind: [] for kind in KINDS}
    ring.find(known[0], 1.0)
    for kind, secret in asked:
        began = time.perf_counter_ns()
        ring.find(secret, 1.0)
        times[kind].append(time.perf_counter_ns() - began)
    wrong = sorted(one for kind in ("far", "half", "near") for one in times[kind])
    limit = wrong[len(wrong) * 9 // 10]
    calm = {kind: [one for one in each if one <= limit] for kind, each in times.items()}
    return {
        "median_ns": {kind: statistics.median(each) for kind, each in times.items()},
        "p90_ns": {kind: sorted(each)[len(each) * 9 // 10] for kind, each in times.items()},
        "p": {kind: _p(calm["far"], calm[kind]) for kind in ("half", "near")},
    }


def _guess(kind: str, secret: str) -> str:
    """As long as the key that it is near to, and a text of its own, as far as there are many: what
    is looked up again and again meets the same neighbours in the table each time.
    """
    keep = {"far": 0, "half": len(secret) // 2, "near": len(secret) - 1, "right": len(secret)}[kind]
    other = new_secret()[keep:]
    while other and other[-1] == secret[-1]:
        other = new_secret()[keep:]
    return "".join([*secret[:keep], *other])


def _p(one: list[int], other: list[int]) -> float:
    """Of Welch's test, two-sided, for samples that are large."""
    spread = statistics.pvariance(one) / len(one) + statistics.pvariance(other) / len(other)
    if spread == 0:
        return 1.0
    t = (statistics.fmean(one) - statistics.fmean(other)) / math.sqrt(spread)
    return math.erfc(abs(t) / math.sqrt(2))


def _grid(rounds: list[Json]) -> list[str]:
    header = ["guess", *(f"round {number + 1}" for number in range(len(rounds)))]
    return table.grid(header, [[kind, *(_cell(one, kind) for one in rounds)] for kind in KINDS])


def _cell(one: Json, kind: str) -> str:
    told = f"{one['median_ns'][kind]:.0f} ns, p90 {one['p90_ns'][kind]:.0f}"
    return told + (f", p {one['p'][kind]:.3f}" if kind in one["p"] else "")


if __name__ == "__main__":
    sys.exit(main())
