"""`mlxd policy ...`: look at policies, try them, put them in force, take them back.

Each command asks the running daemon where one answers on its admin socket, and works on the files
alone where none does, or one that follows other files than those that were named. Exit status: 0
done; 1 it failed, or (diff, test, simulate) something differs, fails or is missed; 2 wrong usage,
or a policy that is refused.
"""

from __future__ import annotations

import argparse

from mlxd.cli.arguments import Actions, add_action

_MOST_DIGITS = 9


def add(commands: Actions[argparse.ArgumentParser]) -> None:
    """Add `policy` and its actions to the commands."""
    policy = commands.add_parser("policy", help="look at, try, change and take back policies")
    actions = policy.add_subparsers(title="actions", required=True, metavar="ACTION")
    _add_looking(actions)
    _add_changing(actions)
    _add_files(actions)


def _add_looking(actions: Actions[argparse.ArgumentParser]) -> None:
    check = add_action(actions, "check", "say all that is wrong with the policy files", _check)
    check.add_argument(
        "--online", action="store_true",
        help="also what only the running daemon can try: whether a port can be had",
    )  # fmt: skip
    explain = add_action(actions, "explain", "say why a value is what it is", _explain)
    explain.add_argument(
        "key", metavar="KEY", nargs="?", default="",
        help="such as limits.concurrency.max_in_flight, or a group; without it, every value",
    )  # fmt: skip
    diff = add_action(actions, "diff", "say which values differ; exit status 1 if any does", _diff)
    states = "running, disk, defaults, or the number of a generation"
    diff.add_argument("old", metavar="A", nargs="?", default="", help=states)
    diff.add_argument("new", metavar="B", nargs="?", default="disk", help=states)
    add_action(actions, "history", "list the generations that are kept", _history)


def _add_changing(actions: Actions[argparse.ArgumentParser]) -> None:
    plan = add_action(actions, "plan", "say what an edit would do, before it is saved", _plan)
    plan.add_argument(
        "files", metavar="FILE", nargs="*",
        help="an edited copy, called like the file it would replace (limits.yaml)",
    )  # fmt: skip
    plan.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], dest="settings",
        help="instead of a file: one value, such as limits.concurrency.max_in_flight=2",
    )  # fmt: skip
    reload = add_action(actions, "reload", "read the files now, and say what came of it", _reload)
    reload.add_argument("--etag", default="", help="only if these policies are still in force")
    rollback = add_action(
        actions, "rollback", "write an earlier generation's files back", _rollback
    )
    rollback.add_argument(
        "generation", metavar="N", type=_generation, help="see mlxd policy history"
    )
    rollback.add_argument("--etag", default="", help="only if these policies are still in force")
    rollback.add_argument(
        "--force", action="store_true", help="even if that loses an edit which is not in force"
    )


def _add_files(actions: Actions[argparse.ArgumentParser]) -> None:
    schema = add_action(actions, "schema", "print the JSON Schema of a policy file", _schema)
    schema.add_argument("kind", metavar="KIND", nargs="?", default="", help="such as limits")
    test = add_action(actions, "test", "run the policies' own tests on a virtual clock", _test)
    test.add_argument(
        "paths", metavar="PATH", nargs="*", help="files or folders; tests/ of the policy folder"
    )
    _add_simulate(actions)
    add_action(
        actions, "init", "write the commented defaults where they are looked for", _init, json=False
    )


def _add_simulate(actions: Actions[argparse.ArgumentParser]) -> None:
    simulate = add_action(
        actions, "simulate", "play recorded traffic against policies, on a virtual clock", _simulate
    )
    simulate.add_argument(
        "--traffic", metavar="LOG", nargs="+", default=[],
        help="files or folders of server.traffic; the state folder's",
    )  # fmt: skip
    simulate.add_argument(
        "--baseline", metavar="DIR",
        help="compare with these policies simulated, not with what was recorded",
    )  # fmt: skip
    simulate.add_argument(
        "--expect", metavar="FILE",
        help="objectives (mlxd-expect/v1); exit status 1 when one is missed",
    )  # fmt: skip
    simulate.add_argument("--image", metavar="FILE.svg", help="the table as a picture, too")


def _generation(text: str) -> int:
    if not text.isdecimal() or len(text) > _MOST_DIGITS:
        raise argparse.ArgumentTypeError(f"{text!r} is no generation's number")
    return int(text)


def _check(arguments: argparse.Namespace) -> int:
    from mlxd.cli.policy import check

    return check.check(
        arguments.policies, arguments.state, as_json=arguments.json, online=arguments.online
    )


def _explain(arguments: argparse.Namespace) -> int:
    from mlxd.cli.policy import explain

    return explain.explain(
        arguments.policies, arguments.state, arguments.key, as_json=arguments.json
    )


def _diff(arguments: argparse.Namespace) -> int:
    from mlxd.cli.policy import diff

    return diff.diff(
        arguments.policies, arguments.state, arguments.old, arguments.new, as_json=arguments.json
    )


def _history(arguments: argparse.Namespace) -> int:
    from mlxd.cli.policy import history

    return history.history(arguments.policies, arguments.state, as_json=arguments.json)


def _plan(arguments: argparse.Namespace) -> int:
    from mlxd.cli.policy import plan

    return plan.plan(
        arguments.policies, arguments.state, arguments.files, arguments.settings,
        as_json=arguments.json,
    )  # fmt: skip


def _reload(arguments: argparse.Namespace) -> int:
    from mlxd.cli.policy import change

    return change.reload(
        arguments.policies, arguments.state, etag=arguments.etag, as_json=arguments.json
    )


def _rollback(arguments: argparse.Namespace) -> int:
    from mlxd.cli.policy import change

    return change.rollback(
        arguments.policies, arguments.state, arguments.generation,
        etag=arguments.etag, force=arguments.force, as_json=arguments.json,
    )  # fmt: skip


def _schema(arguments: argparse.Namespace) -> int:
    from mlxd.cli.policy import schema

    return schema.schema(arguments.kind, as_json=arguments.json)


def _test(arguments: argparse.Namespace) -> int:
    from mlxd.cli.policy import run_tests

    return run_tests.run_tests(
        arguments.policies, arguments.state, arguments.paths, as_json=arguments.json
    )


def _simulate(arguments: argparse.Namespace) -> int:
    from mlxd.cli.policy import simulate

    asked = simulate.Asked(
        arguments.traffic, arguments.baseline, arguments.expect, arguments.image, arguments.json
    )
    return simulate.simulate(arguments.policies, arguments.state, asked)


def _init(arguments: argparse.Namespace) -> int:
    from mlxd.cli.policy import init

    return init.init(arguments.policies)
