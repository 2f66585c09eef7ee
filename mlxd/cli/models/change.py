"""`mlxd models rm`, `mlxd models reset`, `mlxd cp`, `mlxd load` and `mlxd unload`."""

from __future__ import annotations

from typing import Any

from mlxd.cli import exits
from mlxd.cli.admin import AdminClient
from mlxd.cli.models.asking import asking, print_json, print_lines
from mlxd.core.counts import plural


def remove(policies: str | None, state: str | None, name: str, *, as_json: bool) -> int:
    """A pulled model with its files, or one more name of a model."""
    return _done(
        (policies, state), "/admin/delete", {"model": name}, f"{name} is removed", as_json=as_json
    )


def copy(
    policies: str | None, state: str | None, name: str, destination: str, *, as_json: bool
) -> int:
    """One more name; no file is copied."""
    body = {"source": name, "destination": destination}
    words = f"{destination} is another name for {name}"
    return _done((policies, state), "/admin/copy", body, words, as_json=as_json)


def load(
    policies: str | None, state: str | None, name: str, keep_alive: str, *, as_json: bool
) -> int:
    """Returns when it is in memory."""
    body = {"model": name, **({"keep_alive": keep_alive} if keep_alive else {})}
    return _done((policies, state), "/admin/load", body, f"{name} is in memory", as_json=as_json)


def unload(policies: str | None, state: str | None, name: str, *, as_json: bool) -> int:
    """Requests that use it finish first."""
    words = f"{name} leaves memory when nothing uses it"
    return _done((policies, state), "/admin/unload", {"model": name}, words, as_json=as_json)


def reset(policies: str | None, state: str | None, name: str, *, as_json: bool) -> int:
    """Its failures are forgotten, and the requests that were refused because of them."""

    def ask(daemon: AdminClient) -> int:
        answer = daemon.post("/admin/models/reset", name=name)
        if as_json:
            print_json(answer)
        else:
            print_lines([_forgotten(answer)])
        return exits.DONE

    return asking(policies, state, ask, as_json=as_json)


def _forgotten(answer: dict[str, Any]) -> str:
    model, requests = answer["model"], answer["requests"]
    told = f"; {plural(requests, 'request')} may be made again" if requests else ""
    if answer["reset"]:
        return f"{model} is tried with the next request{told}"
    return f"nothing was held against {model}{told}"


def _done(
    places: tuple[str | None, str | None], target: str, body: object, words: str, *, as_json: bool
) -> int:
    def ask(daemon: AdminClient) -> int:
        answer = daemon.wait(target, body)
        if as_json:
            print_json(answer)
        else:
            print_lines([words])
        return exits.DONE

    return asking(*places, ask, as_json=as_json)
