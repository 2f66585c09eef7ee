"""`mlxd explain`: what became of a request, and why."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any
from urllib.parse import quote

from mlxd.cli import exits
from mlxd.cli.admin import AdminClient
from mlxd.cli.models.asking import asking, print_json, print_lines
from mlxd.cli.models.words import columns
from mlxd.cli.story import lines_of, row_of

Json = dict[str, Any]

_HEAD = ["came", "request", "by", "model", "took", "ended"]


def explain(policies: str | None, state: str | None, id: str, count: int, *, as_json: bool) -> int:
    """One request, or without an id the last `count` of them, the newest last."""

    def ask(daemon: AdminClient) -> int:
        if id:
            found = daemon.get(f"/admin/requests/{quote(id, safe='')}")
        else:
            found = daemon.get("/admin/requests", n=str(count))
        if as_json:
            print_json(found)
        else:
            stories = found["requests"]
            print_lines(chain.from_iterable(map(lines_of, stories)) if id else _listed(stories))
        return exits.DONE

    return asking(policies, state, ask, as_json=as_json)


def _listed(stories: list[Json]) -> Iterator[str]:
    if stories:
        yield from columns([_HEAD, *map(row_of, reversed(stories))])
    else:
        yield "no request that asked for a model is remembered"
