"""`mlxd models ...`, and what is done with one model: pull, cp, ps, load, unload.

All of them ask the running daemon on its admin socket. Exit status: 0 done; 1 it failed, there is
no such model, or (fit) it never fits; 2 wrong usage.
"""

from __future__ import annotations

import argparse

from mlxd.cli.arguments import Actions, add_action


def add(commands: Actions[argparse.ArgumentParser]) -> None:
    """Add them to the commands."""
    parser = commands.add_parser("models", help="which models there are, and which fit")
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    add_action(
        actions, "list", "list the models, and what is wrong with those that do not work", _list
    )
    _named(add_action(actions, "show", "what a model is, and where it is from", _show))
    _named(add_action(actions, "rm", "remove a pulled model, or a name made by mlxd cp", _remove))
    _named(
        add_action(
            actions, "reset", "have a model tried at once whose worker keeps failing", _reset
        )
    )
    fit = _named(add_action(actions, "fit", "say whether a model fits in memory", _fit))
    fit.add_argument(
        "--context", type=_tokens, metavar="N", help="for N tokens of prompt and answer together"
    )
    pull = add_action(commands, "pull", "fetch a model from a hub, or go on with it", _pull)
    _named(pull, "ORGANISATION/NAME, or a name such as qwen2.5-coder:32b")
    copy = _named(add_action(commands, "cp", "give a model one more name", _copy))
    copy.add_argument("destination", metavar="NEW")
    add_action(commands, "ps", "what is in memory", _ps)
    load = _named(add_action(commands, "load", "have a model in memory", _load))
    load.add_argument(
        "--keep-alive", default="", metavar="D",
        help="how long it stays unused, such as 1h; -1s: for ever",
    )  # fmt: skip
    _named(add_action(commands, "unload", "let a model go, when nothing uses it", _unload))


def _named(
    parser: argparse.ArgumentParser, words: str = "as a client would name it"
) -> argparse.ArgumentParser:
    parser.add_argument("name", metavar="NAME", help=words)
    return parser


def _tokens(text: str) -> int:
    if not text.isdecimal() or not 0 < len(text) <= 9 or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of tokens")
    return int(text)


def _list(arguments: argparse.Namespace) -> int:
    from mlxd.cli.models.look import list_models

    return list_models(arguments.policies, arguments.state, as_json=arguments.json)


def _show(arguments: argparse.Namespace) -> int:
    from mlxd.cli.models.look import show

    return show(arguments.policies, arguments.state, arguments.name, as_json=arguments.json)


def _ps(arguments: argparse.Namespace) -> int:
    from mlxd.cli.models.look import ps

    return ps(arguments.policies, arguments.state, as_json=arguments.json)


def _fit(arguments: argparse.Namespace) -> int:
    from mlxd.cli.models.fit import fit

    return fit(
        arguments.policies, arguments.state, arguments.name, arguments.context,
        as_json=arguments.json,
    )  # fmt: skip


def _pull(arguments: argparse.Namespace) -> int:
    from mlxd.cli.models.pull import pull

    return pull(arguments.policies, arguments.state, arguments.name, as_json=arguments.json)


def _remove(arguments: argparse.Namespace) -> int:
    from mlxd.cli.models.change import remove

    return remove(arguments.policies, arguments.state, arguments.name, as_json=arguments.json)


def _reset(arguments: argparse.Namespace) -> int:
    from mlxd.cli.models.change import reset

    return reset(arguments.policies, arguments.state, arguments.name, as_json=arguments.json)


def _copy(arguments: argparse.Namespace) -> int:
    from mlxd.cli.models.change import copy

    return copy(
        arguments.policies, arguments.state, arguments.name, arguments.destination,
        as_json=arguments.json,
    )  # fmt: skip


def _load(arguments: argparse.Namespace) -> int:
    from mlxd.cli.models.change import load

    return load(
        arguments.policies, arguments.state, arguments.name, arguments.keep_alive,
        as_json=arguments.json,
    )  # fmt: skip


def _unload(arguments: argparse.Namespace) -> int:
    from mlxd.cli.models.change import unload

    return unload(arguments.policies, arguments.state, arguments.name, as_json=arguments.json)
