"""Arguments that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

from mlxd.core.counts import whole

_FILES = frozenset(
    {
        "baseline", "expect", "image", "json", "logs", "output", "policies",
        "program", "report", "state", "svg",
    }
)  # fmt: skip
"""Arguments that may name a file or a folder, which may be called by any bytes."""

Actions = argparse._SubParsersAction  # the type that add_subparsers returns has no public name


def add_action(
    actions: Actions[argparse.ArgumentParser],
    name: str,
    words: str,
    run: Callable[[argparse.Namespace], int],
    *,
    json: bool = True,
) -> argparse.ArgumentParser:
    """A command that looks for the daemon's folders; `run` gets its arguments. `json`: whether
    programs are told the same.
    """
    parser = actions.add_parser(name, help=words, description=words)
    add_places(parser)
    if json:
        add_json(parser)
    parser.set_defaults(run=run)
    return parser


def add_places(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--policies", metavar="DIR", help="policy folder (MLXD_POLICIES)")
    parser.add_argument("--state", metavar="DIR", help="state folder (MLXD_STATE)")


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="the same for programs")


def count(text: str, digits: int = 18) -> int:
    """Of something, of at most so many digits."""
    number = whole(text, digits)
    if not number:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above zero")
    return number


def no_text(arguments: argparse.Namespace) -> Iterator[str]:
    """What was said in bytes that are no UTF-8, and is not the name of a file."""
    for name, value in vars(arguments).items():
        if name not in _FILES and isinstance(value, str) and not _is_text(value):
            yield value


def _is_text(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True
