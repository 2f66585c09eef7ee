"""`mlxd cache stats` and `mlxd cache clear`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mlxd.cli import exits
from mlxd.cli.admin import AdminClient
from mlxd.cli.models.asking import asking, print_json, print_lines
from mlxd.cli.models.words import columns, duration, size
from mlxd.core.counts import plural

Json = dict[str, Any]

_HEAD = ("MODEL", "KEPT", "OF", "PROMPTS", "UNUSED FOR", "ON DISK", "FOUND", "SAVED")
_BARE = "nothing is left on disk, of models that are not in memory either"
_LEFT = "what is on disk of it stays: without a name, `mlxd cache clear --disk` removes all of that"
_BUSY = "?"
"""It did not answer in time."""


def stats(policies: str | None, state: str | None, name: str, *, as_json: bool) -> int:
    """Of one model, or of all in memory."""

    def ask(daemon: AdminClient) -> int:
        found = daemon.get("/admin/cache", **_query(name))
        if as_json:
            print_json(found)
        elif found["models"]:
            print_lines(columns([_HEAD, *map(_row, found["models"])]))
            print_lines(_on_disk(found["disk"]))
        else:
            print_lines([_nothing(name), *_on_disk(found["disk"])])
        return exits.DONE

    return asking(policies, state, ask, as_json=as_json)


def clear(policies: str | None, state: str | None, name: str, *, disk: bool, as_json: bool) -> int:
    """What is read from now on is kept again."""

    def ask(daemon: AdminClient) -> int:
        found = daemon.delete("/admin/cache", **_query(name), **({"disk": "1"} if disk else {}))
        left = disk and bool(name) and not found["models"]
        if as_json:
            print_json(found)
        else:
            print_lines([*_cleared(found["models"], disk=disk)] or [_nothing(name)])
            if left:
                print_lines([_LEFT])
            elif disk and not name:
                print_lines([*_on_disk(found["disk"])] or [_BARE])
        done = not left and all(model["answered"] for model in found["models"])
        return exits.DONE if done else exits.FAILED

    return asking(policies, state, ask, as_json=as_json)


def _query(name: str) -> dict[str, str]:
    return {"model": name} if name else {}


def _nothing(name: str) -> str:
    return f"{name} is not in memory" if name else "no model is in memory"


def _on_disk(disk: Json) -> Iterator[str]:
    """Of all models, whoever is in memory."""
    if disk["entries"]:
        prompts = plural(disk["entries"], "prompt")
        yield f"on disk, of all models: {prompts}, {size(disk['bytes'])}"


def _row(model: Json) -> tuple[str, ...]:
    asked, known = model["lookups"], model["answered"]
    found, all = asked["whole"] + asked["part"], sum(asked.values())
    tokens = model["reused_tokens"] + model["computed_tokens"]
    return (
        model["name"],
        size(model["bytes"]),
        size(model["budget_bytes"]),
        str(model["entries"]) if known else _BUSY,
        (duration(model["oldest_use_seconds"]) if model["entries"] else "") if known else _BUSY,
        (size(model["disk_bytes"]) if model["disk_entries"] else "") if known else _BUSY,
        f"{found} of {all}",
        f"{model['reused_tokens']} of {plural(tokens, 'token')}",
    )


def _cleared(models: Sequence[Json], *, disk: bool) -> Iterator[str]:
    where = "in memory or on disk" if disk else "in memory"
    for model in models:
        if model["answered"]:
            yield f"{model['name']} keeps nothing {where} of the prompts that it has read"
        else:
            yield f"{model['name']} is busy and will forget what it keeps after its present step"
