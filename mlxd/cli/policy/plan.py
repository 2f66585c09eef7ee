"""`mlxd policy plan`: what an edit would do, before it is saved."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlxd.cli import exits
from mlxd.cli.models.asking import print_json
from mlxd.cli.policy.diff import line_of
from mlxd.cli.policy.here import FAILURES, Here, errors_json, here, refused, wrong
from mlxd.policy.diff import changes
from mlxd.policy.explain import newly_hidden
from mlxd.policy.files import bytes_of, read
from mlxd.policy.load import Override, PolicyErrors, judge
from mlxd.policy.policy_set import FILES

Json = dict[str, Any]


class _Wrong(Exception):
    """An argument that cannot be used."""


def plan(
    policies: str | None,
    state: str | None,
    files: Sequence[str],
    settings: Sequence[str],
    *,
    as_json: bool,
) -> int:
    """Show the changed values and their consequences; nothing is changed."""
    try:
        this = here(policies, state)
        edited = _edited([Path(file) for file in files])
        wanted = [_setting(one) for one in settings]
        daemon = this.follower()
        if daemon is None:
            report = _without_daemon(this, edited, wanted)
        else:
            values = {key: value for key, value, _ in wanted}
            report = daemon.post("/admin/policy/plan", {"files": edited, "set": values})
    except FAILURES as error:
        return refused(error, as_json=as_json)
    except _Wrong as error:
        return wrong(error, as_json=as_json)
    return _show(report, as_json=as_json)


def _without_daemon(
    this: Here, edited: Mapping[str, str], wanted: Sequence[tuple[str, str, str]]
) -> Json:
    """No daemon runs with them: the files as they are against the files as they would be."""
    present = read(this.folder)
    put = {name: text.encode("utf-8", "surrogateescape") for name, text in edited.items()}
    overrides = [*(Override(*one, yaml=True) for one in wanted), *this.overrides]
    try:
        old = this.load()
        new = judge(present.with_contents({**present.contents, **put}), overrides)
        found = changes(old, new)
    except PolicyErrors as error:
        return {"valid": False, "errors": errors_json(error), "changes": [], "effects": []}
    return {
        "valid": True,
        "errors": [],
        "changes": [change.as_json() for change in found],
        "effects": ["no daemon runs with these files: this is what a start with them would do"],
        "shadowed": newly_hidden(old, new),
        "warnings": new.warnings(),
    }


def _edited(files: Sequence[Path]) -> dict[str, str]:
    """Texts by the name of the file they would replace. Raises _Wrong."""
    found: dict[str, str] = {}
    for file in files:
        if file.name in found:
            raise _Wrong(f"{file}: another {file.name} was given already")
        found[file.name] = _text_of(file)
    return found


def _text_of(file: Path) -> str:
    if file.name not in FILES:
        raise _Wrong(f"{file}: call it like the file it would replace: {', '.join(FILES)}")
    try:
        return bytes_of(file).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise _Wrong(f"{file}: cannot be read: {error}") from error


def _setting(text: str) -> tuple[str, str, str]:
    key, equals, value = text.partition("=")
    if not equals or "." not in key.strip(". "):
        raise _Wrong(f"--set {text}: expected KEY=VALUE, such as timeouts.queue=5s")
    return key.strip(), value.strip(), "--set"


def _show(report: Json, *, as_json: bool) -> int:
    if as_json:
        print_json(report)
    elif not report["valid"]:
        print("\n".join(error["text"] for error in report["errors"]), file=sys.stderr)
    else:
        print("\n".join(map(line_of, report["changes"])) or "no value would change")
        for effect in (*report["effects"], *report["shadowed"]):
            print(f"  => {effect}")
    return exits.DONE if report["valid"] else exits.USAGE
