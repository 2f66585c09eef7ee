"""The command line: arguments in, exit status out.

0 done; 1 it failed (no daemon answers, it did not stop); 2 wrong usage, or a policy that is
refused; 75 the port or the state folder is taken by another daemon.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mlxd import __version__
from mlxd.cli import exits
from mlxd.core.places import BadEnvFile


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Each imports what it needs by itself: `status` answers at once."""
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except BadEnvFile as error:
        print(error, file=sys.stderr)
        return exits.USAGE
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mlxd",
        description="Serves language models with MLX.",
        epilog="Exit status: 0 done, 1 failed, 2 wrong usage or policy, 75 already running.",
    )
    parser.add_argument("--version", action="version", version=f"mlxd {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="run the daemon in the foreground")
    _add_places(serve)
    serve.add_argument("--host", help="address to listen on (MLXD_HOST)")
    serve.add_argument("--port", help="port to listen on (MLXD_PORT, MLX_API_PORT)")
    serve.set_defaults(run=_serve)

    status = commands.add_parser("status", help="what the running daemon is doing")
    _add_places(status)
    status.add_argument("--json", action="store_true", help="the body of /health")
    status.set_defaults(run=_status)

    stop = commands.add_parser("stop", help="stop the running daemon, letting requests finish")
    _add_places(stop)
    stop.set_defaults(run=_stop)

    policy = commands.add_parser("policy", help="work with the policy files")
    actions = policy.add_subparsers(title="actions", required=True, metavar="ACTION")
    check = actions.add_parser("check", help="say what is wrong with the policy files")
    _add_places(check)
    check.add_argument("--json", action="store_true", help="the same for programs")
    check.set_defaults(run=_policy_check)
    init = actions.add_parser("init", help="write the commented defaults where they are looked for")
    _add_places(init)
    init.set_defaults(run=_policy_init)

    env = commands.add_parser("env", help="print variables that point clients at the daemon")
    _add_places(env)
    env.set_defaults(run=_env)
    return parser


def _add_places(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--policies", metavar="DIR", help="policy folder (MLXD_POLICIES)")
    parser.add_argument("--state", metavar="DIR", help="state folder (MLXD_STATE)")


def _serve(arguments: argparse.Namespace) -> int:
    from mlxd.cli import serve

    return serve.serve(arguments.policies, arguments.state, arguments.host, arguments.port)


def _status(arguments: argparse.Namespace) -> int:
    from mlxd.cli import status

    return status.status(arguments.policies, arguments.state, as_json=arguments.json)


def _stop(arguments: argparse.Namespace) -> int:
    from mlxd.cli import stop

    return stop.stop(arguments.policies, arguments.state)


def _policy_check(arguments: argparse.Namespace) -> int:
    from mlxd.cli import policy

    return policy.check(arguments.policies, arguments.state, as_json=arguments.json)


def _policy_init(arguments: argparse.Namespace) -> int:
    from mlxd.cli import policy

    return policy.init(arguments.policies)


def _env(arguments: argparse.Namespace) -> int:
    from mlxd.cli import status

    return status.env(arguments.policies, arguments.state)
