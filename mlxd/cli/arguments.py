"""Arguments that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable

Actions = argparse._SubParsersAction  # the type that add_subparsers returns has no public name


def add_action(
    actions: Actions[argparse.ArgumentParser],
    name: str,
    words: str,
    run: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    """A command that looks for the daemon's folders; `run` gets its arguments."""
    parser = actions.add_parser(name, help=words, description=words)
    add_places(parser)
    parser.set_defaults(run=run)
    return parser


def add_places(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--policies", metavar="DIR", help="policy folder (MLXD_POLICIES)")
    parser.add_argument("--state", metavar="DIR", help="state folder (MLXD_STATE)")


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="the same for programs")
