"""`mlxd models list`, `mlxd models show` and `mlxd ps`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from mlxd.cli import exits
from mlxd.cli.admin import AdminClient
from mlxd.cli.models.asking import asking, print_json, print_lines
from mlxd.cli.models.words import columns, duration, size
from mlxd.core.counts import plural, short

Json = dict[str, Any]


def list_models(policies: str | None, state: str | None, *, as_json: bool) -> int:
    """Every model that a client can name."""

    def ask(daemon: AdminClient) -> int:
        found = daemon.get("/admin/models")
        if as_json:
            print_json(found)
        else:
            rows = [("NAME", "SIZE", "PARAMETERS", "QUANTISATION", "CONTEXT", "STATE")]
            print_lines(columns([*rows, *map(_row, found["models"])]))
            print_lines(_undrafted(found["models"]))
        return exits.DONE

    return asking(policies, state, ask, as_json=as_json)


def show(policies: str | None, state: str | None, name: str, *, as_json: bool) -> int:
    """One model."""

    def ask(daemon: AdminClient) -> int:
        found = daemon.get("/admin/models/show", name=name)
        if as_json:
            print_json(found)
        else:
            print_lines(columns([*_facts(found)]))
        return exits.DONE

    return asking(policies, state, ask, as_json=as_json)


def ps(policies: str | None, state: str | None, *, as_json: bool) -> int:
    """What is in memory."""

    def ask(daemon: AdminClient) -> int:
        found = daemon.get("/admin/ps")
        if as_json:
            print_json(found)
        elif found["models"]:
            rows = [("NAME", "SIZE", "CONTEXT", "RUNNING", "PROCESS", "LEAVES")]
            print_lines(columns([*rows, *map(_process, found["models"])]))
        else:
            print("no model is in memory")
        return exits.DONE

    return asking(policies, state, ask, as_json=as_json)


def _undrafted(models: Iterable[Json]) -> list[str]:
    return [
        f"no model drafts for {model['name']}: {model['undrafted']}"
        for model in models
        if model["undrafted"]
    ]


def _row(model: Json) -> tuple[str, ...]:
    if model["unavailable"]:
        return model["name"], "", "", "", "", f"cannot be used: {model['unavailable']}"
    return (
        model["name"],
        size(model["size_bytes"]),
        short(model["parameters"]),
        model["quantization"],
        str(model["context"]),
        _state(model),
    )


def _state(model: Json) -> str:
    state = "loaded" if model["loaded"] else model["state"]
    drafted = model["draft"] and not model["undrafted"]
    words = (state, f"drafted for by {model['draft']}" if drafted else "")
    return ", ".join(filter(None, words))


def _facts(model: Json) -> Iterator[tuple[str, str]]:
    yield "name", model["name"]
    yield "folder", model["path"]
    if model["repository"]:
        yield "pulled from", f"{model['repository']}, commit {model['revision'][:12]}"
    if model["unavailable"]:
        yield "cannot be used", model["unavailable"]
        return
    yield "size", size(model["size_bytes"])
    yield "family", model["family"]
    yield "parameters", f"{short(model['parameters'])}, {model['quantization']}"
    yield "context", f"{model['context']} tokens of prompt and answer together"
    yield "can do", ", ".join(model["capabilities"])
    if model["sampling"]:
        yield "samples with", ", ".join(f"{k} {v:g}" for k, v in model["sampling"].items())
    if model["license"]:
        yield "license", model["license"][:200]
    if model["undrafted"]:
        yield "drafts", f"none: {model['undrafted']}"
    elif model["draft"]:
        yield "drafts", f"by {model['draft']}"
    yield "digest", model["digest"][:12]
    yield "in memory", "yes" if model["loaded"] else "no"


def _process(model: Json) -> tuple[str, ...]:
    return (
        model["name"],
        size(model["size_bytes"]),
        str(model["context"]),
        str(model["running"]),
        "" if model["pid"] is None else str(model["pid"]),
        _leaves(model),
    )


def _leaves(model: Json) -> str:
    if model["loading"]:
        return str(model["progress"]["words"])
    left = model["expires_in_seconds"]
    if model["running"]:
        wait = f"{duration(left)} after " if left else "after "
        requests = plural(model["running"], "its request").partition(" ")[2]
        return "never" if left is None else f"{wait}{requests}"
    return "never" if left is None else f"in {duration(left)}"
