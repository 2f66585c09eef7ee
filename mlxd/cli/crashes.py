"""`mlxd crashes`: how workers and the daemon ended that nobody asked to end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mlxd.cli import exits
from mlxd.cli.models.asking import failed
from mlxd.cli.models.words import size
from mlxd.cli.moments import local
from mlxd.core import places
from mlxd.core.counts import plural
from mlxd.core.lines import json_line, one_line
from mlxd.telemetry.crashes import read

Json = dict[str, Any]

_STDERR_LINES = 5


def crashes(policies: str | None, state: str | None, count: int, *, as_json: bool) -> int:
    """The last `count`, the newest last. Reads the state folder; needs no daemon."""
    folder = places.find(policies, state).state.path
    try:
        found = read(folder)[-count:]
    except OSError as error:
        return failed(f"{folder}: {error.strerror or error}", as_json=as_json)
    if as_json:
        print(json_line({"crashes": found}))
    elif found:
        print("\n".join(one_line(line) for crash in found for line in _lines(crash)))
    else:
        print(f"no crash is recorded in {folder}")
    return exits.DONE


def _lines(crash: Json) -> Iterator[str]:
    yield f"{local(crash['at'])}  {crash['kind']:<6}  {crash['message']}"
    numbers = list(_numbers(crash))
    if numbers:
        yield f"    {', '.join(numbers)}"
    for line in str(crash.get("stderr") or "").splitlines()[-_STDERR_LINES:]:
        yield f"    | {line}"


def _numbers(crash: Json) -> Iterator[str]:
    """What is known of it."""
    if isinstance(crash.get("running"), int):
        yield plural(crash["running"], "request")
    if isinstance(crash.get("memory"), int):
        yield f"{size(crash['memory'])} held"
    if isinstance(crash.get("step"), int):
        yield f"step {crash['step']}"
    if isinstance(crash.get("pid"), int):
        yield f"pid {crash['pid']}"
