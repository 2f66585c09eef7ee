"""`mlxd policy explain KEY`."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from typing import Any

from mlxd.cli import exits
from mlxd.cli.models.asking import print_json
from mlxd.cli.policy.here import FAILURES, here, refused, wrong
from mlxd.core.counts import some
from mlxd.policy import explain as explaining
from mlxd.policy.explain import NoSuchKey

Json = dict[str, Any]

_RELOADS = {
    "live": "with the next decision",
    "live-drain": "at once; what is above a lowered limit runs to its end",
    "rebind": "on a new listener, before the old one closes",
    "rolling": "as the workers concerned are replaced, one by one",
    "restart": "at the next start",
}


def explain(policies: str | None, state: str | None, key: str, *, as_json: bool) -> int:
    """Say what a value is, where it was set, what it hides; of a group, each of its values."""
    try:
        this = here(policies, state)
        daemon = this.follower()
        if daemon is not None:
            report = daemon.get("/admin/policy/explain", key=key)
        else:
            report = {"values": explaining.explain(this.load(), key)}
    except FAILURES as error:
        return refused(error, as_json=as_json)
    except NoSuchKey as error:
        return wrong(error, as_json=as_json)
    values = report["values"]
    if as_json:
        print_json({"values": values})
    elif len(values) == 1:
        print("\n".join(_whole(values[0])))
    else:
        print("\n".join(_short(value) for value in values))
    errors = (one["text"] for one in report.get("errors", ()))
    for words in some(errors, "for {} more reasons: mlxd policy check tells all"):
        print(f"the files have been edited since, and are refused: {words}", file=sys.stderr)
    return exits.DONE


def _whole(value: Json) -> Iterator[str]:
    yield f"{value['key']}: {value['value']}"
    yield f"  set        {value['source']}"
    if value["until_restart"] is not None:
        yield f"  meanwhile  {value['until_restart']}: the change waits for the next start"
    if value["held"] is not None:
        yield f"  held       the model is served as before: {value['held']}"
    for one in value["shadowed"]:
        yield f"  shadows    {one['value']} ({one['source']})"
    if value["default"] is not None:
        yield f"  default    {value['default']}"
    yield f"  takes      {value['takes']}" + (f" ({value['unit']})" if value["unit"] else "")
    yield f"  a change   holds {_RELOADS.get(value['reload'], value['reload'])}"
    yield from textwrap.wrap(
        value["meaning"], 96, initial_indent="  means      ", subsequent_indent=" " * 13
    )


def _short(value: Json) -> str:
    hidden = "".join(f", shadows {one['value']} ({one['source']})" for one in value["shadowed"])
    meanwhile = value["until_restart"]
    waits = f", {meanwhile} until the next start" if meanwhile is not None else ""
    held = ", and the model is served as before" if value["held"] is not None else ""
    return f"{value['key']}: {value['value']}  ({value['source']}{hidden}{waits}{held})"
