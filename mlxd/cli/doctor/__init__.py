"""`mlxd doctor`: what is wrong on this machine, and what to do about each of it.

Exit status: 0 nothing is wrong (there may be advice), 1 something is.
"""

from __future__ import annotations

import argparse

from mlxd.cli.arguments import Actions, add_json, add_places


def add(commands: Actions[argparse.ArgumentParser]) -> None:
    doctor = commands.add_parser("doctor", help="what is wrong on this machine, and what to do")
    add_places(doctor)
    add_json(doctor)
    doctor.set_defaults(run=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    from mlxd.cli.doctor import doctor

    return doctor.doctor(arguments.policies, arguments.state, as_json=arguments.json)
