"""`mlxd doctor`: what is wrong on this machine, and what to do about each of it.

Exit status: 0 nothing is wrong (there may be advice), 1 something is. With `--prove`: 0 all is
proved, 1 not all.
"""

from __future__ import annotations

import argparse
from functools import partial

from mlxd.cli.arguments import Actions, add_json, add_places


def add(commands: Actions[argparse.ArgumentParser]) -> None:
    doctor = commands.add_parser("doctor", help="what is wrong on this machine, and what to do")
    add_places(doctor)
    add_json(doctor)
    doctor.add_argument(
        "--prove", nargs="?", const="", metavar="MODEL",
        help="load a model, stream, kill its worker in the middle, and write a report; without"
        " MODEL the smallest there is",
    )  # fmt: skip
    doctor.add_argument("--report", metavar="PATH", help="of --prove: where its report goes")
    doctor.add_argument("--yes", action="store_true", help="of --prove: do not ask before")
    doctor.set_defaults(run=partial(_doctor, doctor))


def _doctor(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    if arguments.prove is not None:
        return _prove(parser, arguments)
    if arguments.report is not None or arguments.yes:
        parser.error("--report and --yes go with --prove")
    from mlxd.cli.doctor import doctor

    return doctor.doctor(arguments.policies, arguments.state, as_json=arguments.json)


def _prove(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    if arguments.json:
        parser.error("--prove writes a report, and no --json")
    from mlxd.cli.prove import command

    options = command.Options(arguments.prove, arguments.report or "", arguments.yes)
    return command.prove(arguments.policies, arguments.state, options)
