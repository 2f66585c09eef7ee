"""`mlxd policy diff [A [B]]`: which values differ between two states of the policies."""

from __future__ import annotations

import sys
from typing import Any

from mlxd.cli import exits
from mlxd.cli.models.asking import print_json
from mlxd.cli.policy.here import FAILURES, Here, here, refused, wrong
from mlxd.policy.diff import changes
from mlxd.policy.load import judge, load
from mlxd.policy.policy_set import PolicySet

Json = dict[str, Any]

_MOST_DIGITS = 9
"""Of a generation's number."""


class _NoSuchState(Exception):
    """What was to be compared is not there."""


def diff(policies: str | None, state: str | None, old: str, new: str, *, as_json: bool) -> int:
    """Without A, what runs (or the defaults, if nothing does) is compared with the files."""
    try:
        this = here(policies, state)
        if not old and this.daemon() is not None:
            old = "running"
        if old == "running" and new == "disk" and this.follower() is not None:
            return _with_the_daemon(this, as_json=as_json)
        found = [
            change.as_json()
            for change in changes(_state(this, old or "defaults"), _state(this, new))
        ]
    except FAILURES as error:
        return refused(error, as_json=as_json)
    except _NoSuchState as error:
        return wrong(error, as_json=as_json)
    return _show({"changes": found, "pending_restart": [], "shadowed": []}, as_json=as_json)


def _with_the_daemon(this: Here, *, as_json: bool) -> int:
    """By the daemon's own overrides, and with what it knows besides."""
    daemon = this.the_daemon()
    plan = daemon.post("/admin/policy/plan", {"files": {}})
    if plan["errors"]:
        if as_json:
            print_json(plan)
        else:
            print("\n".join(error["text"] for error in plan["errors"]), file=sys.stderr)
        return exits.USAGE
    status = daemon.get("/admin/policy")
    kept = {key: status[key] for key in ("pending_restart", "shadowed")}
    return _show({"changes": plan["changes"], **kept}, as_json=as_json)


def _state(this: Here, name: str) -> PolicySet:
    """Raises PolicyErrors, NoAnswer, Refused, _NoSuchState."""
    if name == "disk":
        return this.load()
    if name == "defaults":
        return load(None, this.overrides)
    if name == "running":
        name = str(this.the_daemon().get("/admin/policy")["generation"])
    if not name.isdecimal() or len(name) > _MOST_DIGITS:
        raise _NoSuchState(f"{name}: expected running, disk, defaults or a generation's number")
    generation = this.history.get(int(name))
    if generation is None:
        raise _NoSuchState(f"generation {name} is not kept; see mlxd policy history")
    return judge(generation.files(), this.overrides)


def _show(report: Json, *, as_json: bool) -> int:
    if as_json:
        print_json(report)
    else:
        for change in report["changes"]:
            print(line_of(change))
        for key in report["pending_restart"]:
            print(f"{key} waits for a restart")
        for text in report["shadowed"]:
            print(text)
        if not report["changes"]:
            print("no value differs")
    return exits.FAILED if report["changes"] else exits.DONE


def line_of(change: Json) -> str:
    """One change for people."""
    old, new = change["old"], change["new"]
    if old is None:
        what = f"+ {change['key']}: {new}"
    elif new is None:
        what = f"- {change['key']}: {old}"
    else:
        what = f"~ {change['key']}: {old} -> {new}"
    return f"{what}  ({change['reload']}, {change['place']})"
