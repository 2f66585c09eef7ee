"""Arguments that several commands share."""

from __future__ import annotations

import argparse


def add_places(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--policies", metavar="DIR", help="policy folder (MLXD_POLICIES)")
    parser.add_argument("--state", metavar="DIR", help="state folder (MLXD_STATE)")


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="the same for programs")
