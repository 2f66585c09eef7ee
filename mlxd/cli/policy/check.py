"""`mlxd policy check`: the verdict of a reload, without one."""

from __future__ import annotations

import sys
from typing import Any

from mlxd.cli import exits
from mlxd.cli.admin import Refused
from mlxd.cli.client import NoAnswer
from mlxd.cli.models.asking import not_done, print_json
from mlxd.cli.policy.here import Here, here, refused
from mlxd.policy.keys_file import demand_of_daemon
from mlxd.policy.load import PolicyErrors
from mlxd.settings import SettingsRefused

Json = dict[str, Any]


def check(policies: str | None, state: str | None, *, as_json: bool, online: bool) -> int:
    """Load the policies as the daemon would; say all that is wrong with them at once."""
    try:
        this = here(policies, state)
        found = this.load()
        note = demand_of_daemon(found, this.state)
    except (SettingsRefused, PolicyErrors) as error:
        return refused(error, as_json=as_json)
    report: Json = {
        "valid": True,
        "folder": str(found.folder) if found.folder is not None else None,
        "errors": [],
        "warnings": [*this.warnings, *found.warnings()],
    }
    if note and not online:
        theirs = _known_to_daemon(this)
        report["errors"], report["valid"] = theirs or [], not theirs
        report["warnings"] += [note] if theirs is None else []
    if online:
        try:
            report["errors"], more = _tried(this)
        except (NoAnswer, Refused) as error:
            return not_done(error, as_json=as_json)
        report["valid"] = not report["errors"]
        report["warnings"] += [warning for warning in more if warning not in report["warnings"]]
    return _show(report, as_json=as_json)


def _known_to_daemon(this: Here) -> list[Json] | None:
    """What a running daemon finds, which can read more than we; None: none runs on this folder, or
    it does not answer us.
    """
    try:
        report = this.the_daemon().post("/admin/policy/check")
    except (NoAnswer, Refused):
        return None
    errors: list[Json] = report["errors"]
    return errors if report["folder"] == str(this.folder or "") else None


def _tried(this: Here) -> tuple[list[Json], list[str]]:
    """The errors and warnings of the running daemon, which prepared everything and gave it back."""
    report = this.the_daemon().post("/admin/policy/check")
    folder = str(this.folder or "")
    if report["folder"] != folder:
        theirs, ours = report["folder"] or "built-in defaults", folder or "built-in defaults"
        words = f"the running daemon's policies are {theirs}, not {ours}"
        return [*report["errors"], {"text": words, "message": words}], []
    return report["errors"], report["warnings"]


def _show(report: Json, *, as_json: bool) -> int:
    if as_json:
        print_json(report)
    elif report["valid"]:
        print(f"{report['folder'] or 'built-in defaults'}: valid")
        for warning in report["warnings"]:
            print(f"warning: {warning}")
    else:
        for error in report["errors"]:
            print(error["text"], file=sys.stderr)
    return exits.DONE if report["valid"] else exits.USAGE
