"""`mlxd service ...`: the daemon as a service of the user's, or of the machine's.

Exit status: 0 done; 1 it failed, is refused, or (status) the service does not run; 2 wrong usage,
or a policy that is refused; 75 a daemon runs that the manager did not start.
"""

from __future__ import annotations

import argparse

from mlxd.cli.arguments import Actions, add_action


def add(commands: Actions[argparse.ArgumentParser]) -> None:
    """Add `service` and its actions to the commands."""
    service = commands.add_parser("service", help="the daemon as a service of launchd or systemd")
    actions = service.add_subparsers(title="actions", required=True, metavar="ACTION")
    _add_install(actions)
    status = add_action(actions, "status", "whether the service runs, and since when", _status)
    _add_system(status)
    reset = add_action(actions, "reset", "let a daemon that kept dying load models again", _reset)
    _add_system(reset)
    _add_render(actions)


def _add_install(actions: Actions[argparse.ArgumentParser]) -> None:
    install = add_action(
        actions, "install", "have launchd or systemd run the daemon", _install, json=False
    )
    install.add_argument(
        "--now", action="store_true", help="start it at once, not only at the next login or boot"
    )
    _add_path(install, "program", "the mlxd to run, if not this one")
    uninstall = add_action(
        actions,
        "uninstall",
        "end that again; policies, models and state stay",
        _uninstall,
        json=False,
    )
    for parser in (install, uninstall):
        _add_system(parser)
        parser.add_argument(
            "--dry-run", action="store_true", help="say what would be done, and do nothing"
        )


def _add_render(actions: Actions[argparse.ArgumentParser]) -> None:
    render = add_action(actions, "render", "print what a service manager would be given", _render)
    render.add_argument(
        "--target", required=True, metavar="T", help="such as launchd; another lists them all"
    )
    render.add_argument(
        "--scope", choices=("user", "system"), help="whose service; by default the target's"
    )
    render.add_argument("--output", metavar="DIR", help="write the files there")
    paths = {
        "program": "the mlxd to run",
        "logs": "folder for logs, where the manager has none of its own",
        "models": "folder of models that belongs to the machine",
    }
    for name, words in paths.items():
        _add_path(render, name, words)
    render.add_argument("--user", metavar="NAME", help="whom a service of the machine runs as")


def _add_system(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--system", action="store_true", help="the machine's service, not this user's"
    )


def _add_path(parser: argparse.ArgumentParser, name: str, words: str) -> None:
    parser.add_argument(f"--{name}", type=_absolute, metavar="PATH", help=words)


def _absolute(text: str) -> str:
    if not text.startswith("/") or not text.isprintable():
        raise argparse.ArgumentTypeError(f"{text!r} is no absolute path")
    return text


def _install(arguments: argparse.Namespace) -> int:
    from mlxd.cli.service import install
    from mlxd.cli.service.site import Site

    site = Site(
        arguments.policies, arguments.state, system=arguments.system, program=arguments.program
    )
    return install.install(site, now=arguments.now, rehearsal=arguments.dry_run)


def _uninstall(arguments: argparse.Namespace) -> int:
    from mlxd.cli.service import install
    from mlxd.cli.service.site import Site

    site = Site(arguments.policies, arguments.state, system=arguments.system)
    return install.uninstall(site, rehearsal=arguments.dry_run)


def _status(arguments: argparse.Namespace) -> int:
    from mlxd.cli.service import status
    from mlxd.cli.service.site import Site

    site = Site(arguments.policies, arguments.state, system=arguments.system)
    return status.status(site, as_json=arguments.json)


def _reset(arguments: argparse.Namespace) -> int:
    from mlxd.cli.service import reset
    from mlxd.cli.service.site import Site

    site = Site(arguments.policies, arguments.state, system=arguments.system)
    return reset.reset(site, as_json=arguments.json)


def _render(arguments: argparse.Namespace) -> int:
    from mlxd.cli.service import render

    options = render.Options(
        target=arguments.target,
        scope=arguments.scope,
        output=arguments.output,
        program=arguments.program,
        logs=arguments.logs,
        models=arguments.models,
        user=arguments.user,
    )
    return render.render(arguments.policies, arguments.state, options, as_json=arguments.json)
