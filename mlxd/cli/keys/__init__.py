"""`mlxd keys ...`: the API keys of clients.

They work on the file of keys, with a daemon or without, and tell a running one of each change. A
new key is shown once, on stdout alone. Exit status: 0 done; 1 it failed, or there is no such key;
2 wrong usage, or a file that is refused.
"""

from __future__ import annotations

import argparse

from mlxd.cli.arguments import Actions, add_action


def add(commands: Actions[argparse.ArgumentParser]) -> None:
    """Add `keys` and its actions to the commands."""
    parser = commands.add_parser("keys", help="the API keys of clients")
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    new = add_action(actions, "add", "make a key, and show it this once", _add)
    new.add_argument("name", metavar="NAME", help="of the key, and of its tenant")
    new.add_argument("--tenant", default="", metavar="T", help="the tenant, if it is another")
    new.add_argument("--note", default="", metavar="TEXT", help="for people; `list` shows it")
    new.add_argument("--expires", default="", metavar="D", help="after so long, such as 90d")
    add_action(actions, "list", "who has keys; never the keys themselves", _list)
    _named(add_action(actions, "revoke", "have a key known no more, from now on", _revoke))
    rotate = _named(
        add_action(actions, "rotate", "make another key in the place of one, and show it", _rotate)
    )
    rotate.add_argument(
        "--grace", default="1h", metavar="D", help="for how long the old one still counts; 1h"
    )


def _named(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("id", metavar="ID", help="see mlxd keys list")
    return parser


def _add(arguments: argparse.Namespace) -> int:
    from mlxd.cli.keys import change

    wanted = change.Wanted(
        arguments.name, arguments.tenant or arguments.name, arguments.note, arguments.expires
    )
    return change.add(arguments.policies, arguments.state, wanted, as_json=arguments.json)


def _list(arguments: argparse.Namespace) -> int:
    from mlxd.cli.keys import look

    return look.look(arguments.policies, arguments.state, as_json=arguments.json)


def _revoke(arguments: argparse.Namespace) -> int:
    from mlxd.cli.keys import change

    return change.revoke(arguments.policies, arguments.state, arguments.id, as_json=arguments.json)


def _rotate(arguments: argparse.Namespace) -> int:
    from mlxd.cli.keys import change

    return change.rotate(
        arguments.policies, arguments.state, arguments.id, arguments.grace, as_json=arguments.json
    )
