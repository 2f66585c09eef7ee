"""The command line: arguments in, exit status out.

0 done; 1 it failed (no daemon answers, it did not stop); 2 wrong usage, or a policy that is
refused; 70 the daemon hung or lost a part, and ended itself; 75 the port or the state folder is
taken by another daemon.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence

from mlxd.cli import bench, cache, doctor, exits, keys, models, policy, service, stdout
from mlxd.cli.arguments import Actions, add_action, count, no_text
from mlxd.cli.client import OtherVersion
from mlxd.core.lines import one_line
from mlxd.core.places import BadAddress, BadEnvFile


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Each imports what it needs by itself: `status` answers at once."""
    stdout.guard()
    try:
        try:
            return _run(sys.argv[1:] if argv is None else argv)
        finally:
            sys.stdout.flush()
    except stdout.Unwritable as error:
        if not error.hung_up:
            print(f"mlxd: stdout cannot be written: {error}", file=sys.stderr)
        return exits.FAILED


def _run(words: Sequence[str]) -> int:
    arguments = _parser(*words[:1]).parse_args(words)
    for word in no_text(arguments):
        print(f"mlxd: {one_line(word)} is no text: expected UTF-8", file=sys.stderr)
        return exits.USAGE
    try:
        status: int = arguments.run(arguments)
    except (BadEnvFile, BadAddress) as error:
        print(error, file=sys.stderr)
        return exits.USAGE
    except OtherVersion as error:
        print(f"mlxd: {one_line(str(error))}", file=sys.stderr)
        return exits.FAILED
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # of stderr
        sys.stderr.close()
        return exits.FAILED
    return status


def _parser(first: str = "") -> argparse.ArgumentParser:
    """Of all commands; where the first word of a command line is one, of that one alone: to
    describe them all takes longer than `status`.
    """
    parser = argparse.ArgumentParser(
        prog="mlxd",
        description="Serves language models with MLX.",
        epilog="Exit status: 0 done, 1 failed, 2 wrong usage or policy, 70 the daemon broke,"
        " 75 already running.",
    )
    parser.add_argument(
        "--version", action=_Version, nargs=0, help="of mlxd, the engine and Python, a line each"
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    adders = [add for names, add in _commands() if first in names]
    for add in adders or [add for _, add in _commands()]:
        add(commands)
    return parser


def _commands() -> Iterator[
    tuple[tuple[str, ...], Callable[[Actions[argparse.ArgumentParser]], None]]
]:
    """The names of commands, and what adds them, in the order of the help."""
    yield ("serve",), _add_serve
    yield ("stop",), _add_stop
    yield ("service",), service.add
    yield ("status",), _add_status
    yield ("events",), _add_events
    yield ("logs",), _add_logs
    yield ("explain",), _add_explain
    yield ("crashes",), _add_crashes
    yield ("models", "pull", "cp", "ps", "load", "unload"), models.add
    yield ("bench",), bench.add
    yield ("cache",), cache.add
    yield ("policy",), policy.add
    yield ("keys",), keys.add
    yield ("doctor",), doctor.add
    yield ("env",), _add_env


def _add_serve(commands: Actions[argparse.ArgumentParser]) -> None:
    serve = add_action(commands, "serve", "run the daemon in the foreground", _serve, json=False)
    serve.add_argument("--host", help="address to listen on (MLXD_HOST)")
    serve.add_argument("--port", help="port to listen on (MLXD_PORT, MLX_API_PORT)")
    serve.add_argument(
        "--strict-boot", action="store_true",
        help="with broken policy files, do not start on the last good ones",
    )  # fmt: skip
    serve.add_argument(
        "--ready-fd", type=_file, metavar="N",
        help="write a line to this open file once the daemon is ready (s6)",
    )  # fmt: skip


def _add_stop(commands: Actions[argparse.ArgumentParser]) -> None:
    add_action(
        commands, "stop", "stop the running daemon, letting requests finish", _stop, json=False
    )


def _add_env(commands: Actions[argparse.ArgumentParser]) -> None:
    add_action(
        commands, "env", "print variables that point clients at the daemon", _env, json=False
    )


def _add_status(commands: Actions[argparse.ArgumentParser]) -> None:
    status = add_action(commands, "status", "what the running daemon is doing", _status, json=False)
    shape = status.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="the body of /health")
    shape.add_argument("--watch", action="store_true", help="again every second, until Ctrl-C")


def _add_events(commands: Actions[argparse.ArgumentParser]) -> None:
    events = add_action(commands, "events", "what the daemon decided, and decides", _events)
    events.add_argument("--follow", action="store_true", help="go on with each as it comes")
    events.add_argument("--since", type=count, metavar="ID", help="only what came after this one")
    events.add_argument("--types", default="", metavar="A,B", help="only of these types")


def _add_logs(commands: Actions[argparse.ArgumentParser]) -> None:
    logs = add_action(
        commands, "logs", "where the daemon's log is, and its last lines", _logs, json=False
    )
    logs.add_argument("-n", "--count", type=count, default=50, metavar="N", help="the last N; 50")
    shown = logs.add_mutually_exclusive_group()
    shown.add_argument("--path", action="store_true", help="only where it is")
    shown.add_argument("--follow", action="store_true", help="go on with each line as it comes")
    shown.add_argument(
        "--worker", metavar="MODEL", help="what the worker of a model in memory said on stderr"
    )


def _add_explain(commands: Actions[argparse.ArgumentParser]) -> None:
    explain = add_action(commands, "explain", "what became of a request, and why", _explain)
    explain.add_argument(
        "id", metavar="REQUEST_ID", nargs="?", default="",
        help="the X-Request-Id of its answer; without it, the last requests are listed",
    )  # fmt: skip
    explain.add_argument(
        "-n", "--count", type=count, default=20, metavar="N", help="list the last N; 20"
    )


def _add_crashes(commands: Actions[argparse.ArgumentParser]) -> None:
    crashes = add_action(commands, "crashes", "how workers and the daemon ended unasked", _crashes)
    crashes.add_argument(
        "-n", "--count", type=count, default=20, metavar="N", help="the last N; 20"
    )


class _Version(argparse.Action):
    """Looks for the versions only when it is asked for them: other commands answer at once."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from mlxd.core import versions

        for name, version in versions.everything().items():
            print(name, version)
        parser.exit()


def _serve(arguments: argparse.Namespace) -> int:
    from mlxd.cli import serve

    return serve.serve(
        serve.Flags(
            policies=arguments.policies,
            state=arguments.state,
            host=arguments.host,
            port=arguments.port,
            strict_boot=arguments.strict_boot,
            ready_file=arguments.ready_fd,
        )
    )


def _status(arguments: argparse.Namespace) -> int:
    if arguments.watch:
        from mlxd.cli import watch

        return watch.watch(arguments.policies, arguments.state)
    from mlxd.cli import status

    return status.status(arguments.policies, arguments.state, as_json=arguments.json)


def _stop(arguments: argparse.Namespace) -> int:
    from mlxd.cli import stop

    return stop.stop(arguments.policies, arguments.state)


def _events(arguments: argparse.Namespace) -> int:
    from mlxd.cli import events

    return events.events(
        arguments.policies,
        arguments.state,
        since=arguments.since,
        types=arguments.types,
        follow=arguments.follow,
        as_json=arguments.json,
    )


def _logs(arguments: argparse.Namespace) -> int:
    from mlxd.cli import logs

    if arguments.worker is not None:
        where = (arguments.policies, arguments.state)
        return logs.of_worker(*where, arguments.worker, arguments.count)
    return logs.logs(
        arguments.policies,
        arguments.state,
        arguments.count,
        path_only=arguments.path,
        follow=arguments.follow,
    )


def _explain(arguments: argparse.Namespace) -> int:
    from mlxd.cli import explain

    return explain.explain(
        arguments.policies,
        arguments.state,
        arguments.id,
        arguments.count,
        as_json=arguments.json,
    )


def _crashes(arguments: argparse.Namespace) -> int:
    from mlxd.cli import crashes

    return crashes.crashes(
        arguments.policies, arguments.state, arguments.count, as_json=arguments.json
    )


def _file(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or len(text) > 6 or int(text) < 3:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of an open file from 3 on")
    return int(text)


def _env(arguments: argparse.Namespace) -> int:
    from mlxd.cli import env

    return env.env(arguments.policies, arguments.state)
