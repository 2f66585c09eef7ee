"""Below /v1/responses: what is kept of answers, told and forgotten."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from aiohttp import web

from mlxd.control.archive import Kept
from mlxd.core.counts import whole
from mlxd.core.errors import InvalidRequest, ResponseNotFound, UnsupportedFeature
from mlxd.server.answers import json_response
from mlxd.server.catalog import Nowhere
from mlxd.server.edge import client_of
from mlxd.server.errors import Render, in_openai
from mlxd.server.intake import in_thread
from mlxd.server.parts import Parts
from mlxd.server.responses import items_of

Json = dict[str, Any]
_BELOW = "/v1/responses/"
_MOST_ITEMS = 100
_MOST_DIGITS = 9
_ITEMS = 20
_READING = ("GET", "HEAD")
_COMPACT = ("compact", "")
"""What is a path of its own, and could be an id."""


class KeptResponses:
    """GET and DELETE of one, GET of its input_items, POST of its cancel."""

    render_error: Render = staticmethod(in_openai)

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        id, _, what = request.path.removeprefix(_BELOW).partition("/")
        reads = request.method in _READING
        if not what and reads:
            return _told(self._kept(request, id), request.query)
        if not what and request.method == "DELETE":
            self._parts.archive.remove(self._kept(request, id))
            return json_response({"id": id, "object": "response", "deleted": True})
        if what == "input_items" and reads:
            return await _listed(self._kept(request, id), request.query)
        if request.method == "POST":
            self._refuse(request, id, what)
        return await Nowhere(in_openai, allow=self.allowed(request))(request)

    def allowed(self, request: web.BaseRequest) -> str:
        """The methods of the request's path; empty: there is no such path."""
        id, _, what = request.path.removeprefix(_BELOW).partition("/")
        return _OF_COMPACT if (id, what) == _COMPACT else _ALLOWED.get(what, "")

    def _refuse(self, request: web.BaseRequest, id: str, what: str) -> None:
        """What there is, and cannot be done here."""
        if what == "cancel":
            self._kept(request, id)
            raise InvalidRequest("Cannot cancel a synchronous response.")
        if (id, what) == _COMPACT:
            raise UnsupportedFeature("compaction is not offered")

    def _kept(self, request: web.BaseRequest, id: str) -> Kept:
        kept = self._parts.archive.get(id, client_of(request))
        if kept is None:
            raise ResponseNotFound(f"Response with id '{id[:128]}' not found.", param="id")
        return kept


_OF_COMPACT = "DELETE, GET, HEAD, POST"
_ALLOWED = {"": "DELETE, GET, HEAD", "input_items": "GET, HEAD", "cancel": "POST"}


def measure(parts: Parts) -> None:
    """As metrics."""
    archive, watch = parts.archive, parts.metrics.watch
    watch("mlxd_responses_kept", "Answers that clients may come back to.", lambda: len(archive))
    meaning = "What they take, with what they go on from."
    watch("mlxd_responses_kept_bytes", meaning, lambda: archive.bytes)


def _told(kept: Kept, query: Mapping[str, str]) -> web.Response:
    if query.get("stream", "false") != "false":
        raise UnsupportedFeature(
            "a finished response is told whole, not as a stream", param="stream"
        )
    return web.Response(body=kept.response, content_type="application/json", charset="utf-8")


async def _listed(kept: Kept, query: Mapping[str, str]) -> web.Response:
    limit, order = _limit(query), query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidRequest("order must be asc or desc", param="order")
    items = await in_thread(lambda: _input_of(kept))
    if order == "desc":
        items.reverse()
    begin = _position(items, query.get("after"))
    page = items[begin : begin + limit]
    return json_response(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": begin + limit < len(items),
        }
    )


def _input_of(kept: Kept) -> list[Json]:
    """All that the model was given, the oldest first."""
    *before, last = kept.conversation()
    said: list[Json] = msgspec.json.decode(last.said)
    return [item for turn in before for item in items_of(turn)] + said


def _limit(query: Mapping[str, str]) -> int:
    limit = whole(query.get("limit", str(_ITEMS)), _MOST_DIGITS)
    if limit is None or not 1 <= limit <= _MOST_ITEMS:
        raise InvalidRequest(f"limit must be between 1 and {_MOST_ITEMS}", param="limit")
    return limit


def _position(items: list[Json], after: str | None) -> int:
    if after is None:
        return 0
    for number, item in enumerate(items):
        if item["id"] == after:
            return number + 1
    raise InvalidRequest(f"no item with id '{after[:128]}'", param="after")
