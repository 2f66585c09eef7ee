"""`mlxd cache ...`: what is kept of prompts that were read before.

Exit status: 0 done; 1 it failed, or there is no such model; 2 wrong usage.
"""

from __future__ import annotations

import argparse

from mlxd.cli.arguments import Actions, add_action


def add(commands: Actions[argparse.ArgumentParser]) -> None:
    """Add them to the commands."""
    parser = commands.add_parser("cache", help="what is kept of prompts that were read before")
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    stats = add_action(actions, "stats", "how much is kept, and how often it helps", _stats)
    clear = add_action(actions, "clear", "forget what is kept", _clear)
    clear.add_argument("--disk", action="store_true", help="on disk, too")
    for action in (stats, clear):
        action.add_argument(
            "name", metavar="MODEL", nargs="?", default="",
            help="as a client would name it; without it, of all models in memory",
        )  # fmt: skip


def _stats(arguments: argparse.Namespace) -> int:
    from mlxd.cli.cache import kept

    return kept.stats(arguments.policies, arguments.state, arguments.name, as_json=arguments.json)


def _clear(arguments: argparse.Namespace) -> int:
    from mlxd.cli.cache import kept

    return kept.clear(
        arguments.policies, arguments.state, arguments.name,
        disk=arguments.disk, as_json=arguments.json,
    )  # fmt: skip
