"""`mlxd policy reload` and `mlxd policy rollback N`."""

from __future__ import annotations

import sys
from typing import Any

from mlxd.cli import exits
from mlxd.cli.models.asking import print_json
from mlxd.cli.policy.diff import line_of
from mlxd.cli.policy.here import FAILURES, here, refused

Json = dict[str, Any]


def reload(policies: str | None, state: str | None, *, etag: str, as_json: bool) -> int:
    """Have the daemon read its policy files now; 0 only if they are in force after it."""
    try:
        outcome = here(policies, state).the_daemon().post("/admin/policy/reload", etag=etag)
    except FAILURES as error:
        return refused(error, as_json=as_json)
    return _show(outcome, as_json=as_json)


def rollback(
    policies: str | None,
    state: str | None,
    generation: int,
    *,
    etag: str,
    force: bool,
    as_json: bool,
) -> int:
    """Have the daemon write a generation's files back and put them in force."""
    try:
        outcome = (
            here(policies, state)
            .the_daemon()
            .post("/admin/policy/rollback", etag=etag, gen=str(generation), force=str(int(force)))
        )
    except FAILURES as error:
        return refused(error, as_json=as_json)
    return _show(outcome, as_json=as_json)


def _show(outcome: Json, *, as_json: bool) -> int:
    ok = outcome["result"] != "refused"
    if as_json:
        print_json(outcome)
    elif ok:
        tag = outcome["etag"].strip('"')
        print(f"{outcome['result']}: generation {outcome['generation']} is in force, etag {tag}")
        for change in outcome["changes"]:
            print(f"  {line_of(change)}")
    else:
        print(f"refused: generation {outcome['generation']} stays in force", file=sys.stderr)
        for error in outcome["errors"]:
            print(f"  {error['text']}", file=sys.stderr)
    return exits.DONE if ok else exits.USAGE
