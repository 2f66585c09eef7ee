"""/api/events and /admin/events: what the daemon decides, as it decides it, or as a list.

A follower is no generation: nothing waits for it, a drain neither. One that reads nothing holds a
place in the list and no copy of it; its connection is cut as any other (`timeouts.client_write`).
All together they may hold a share of the connections.
"""

from __future__ import annotations

from aiohttp import web

from mlxd.core.errors import InvalidRequest, Overloaded
from mlxd.dialects.base import to_json
from mlxd.server.answers import json_response
from mlxd.server.connection import Connection
from mlxd.server.edge import common_headers, policies_of
from mlxd.server.errors import Render, in_ollama
from mlxd.server.parts import Parts
from mlxd.telemetry.events import LOST, TYPES, Follower, Record

_HEARTBEAT_SECONDS = 15.0
_HEARTBEAT = b":\n\n"
_FAREWELL = b": end\n\n"
"""Without it the stream was cut off."""
_GREETING = b"retry: 2000\n\n"
"""A browser comes back after so many milliseconds."""
_HEADERS = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}
_MOST_DIGITS = 18
_SHARE = 4
"""Followers may have one connection of so many, and this many in any case."""
_RETRY_SECONDS = 30.0


class EventStream:
    """Server-sent events from `Last-Event-ID`, else `?since=`, else from now on.

    With `Accept: application/json` a list of what is kept. `owner`: for the owner of the daemon,
    who is told everything, and gets the list unless asking for the stream.
    """

    render_error: Render = staticmethod(in_ollama)

    def __init__(self, parts: Parts, *, owner: bool = False) -> None:
        self._parts = parts
        self._owner = owner
        self._followers = 0

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        since, types = _since(request), _types(request)
        accept = request.headers.get("Accept", "")
        streams = "text/event-stream" in accept
        if not streams and (self._owner or "application/json" in accept):
            return self._list(since or 0, types)
        if request.method == "HEAD":
            return web.Response(headers=_HEADERS)
        self._check_room(request)
        self._followers += 1
        try:
            return await self._stream(request, since, types)
        finally:
            self._followers -= 1

    def _check_room(self, request: web.BaseRequest) -> None:
        """Raises Overloaded."""
        policies = policies_of(request)
        most = max(_SHARE, policies.server.http.max_connections // _SHARE)
        if not self._owner and self._followers >= most:
            raise Overloaded(
                f"{most} clients follow the events already",
                retry_after=_RETRY_SECONDS,
                policy=policies.line("server.http.max_connections"),
                numbers={"followers": self._followers, "allowed": most},
                would_pass="the same request once one of them has left",
            )

    def _list(self, since: int, types: frozenset[str]) -> web.Response:
        with self._parts.events.subscribe(since, types) as follower:
            found = [self._told(record) for record in follower.take()]
        return json_response({"events": found} if self._owner else found)

    async def _stream(
        self, request: web.BaseRequest, since: int | None, types: frozenset[str]
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers=_HEADERS)
        response.headers.update(common_headers(request))
        with self._parts.events.subscribe(since, types) as follower:
            await response.prepare(request)
            if isinstance(request.protocol, Connection):
                request.protocol.following = True
            await response.write(_GREETING)
            await self._follow(request, response, follower)
            await response.write(_FAREWELL)
        await response.write_eof()
        return response

    async def _follow(
        self, request: web.BaseRequest, response: web.StreamResponse, follower: Follower
    ) -> None:
        """Until the daemon ends, or its address is not to be served any more."""
        clock = self._parts.clock
        written = clock.monotonic()
        while True:
            silence = clock.monotonic() - written
            if found := follower.take():
                await response.write(b"".join(map(self._block, found)))
            elif self._parts.events.closed or self._moved(request):
                return
            elif silence >= _HEARTBEAT_SECONDS:
                await response.write(_HEARTBEAT)
            else:
                await follower.wait(_HEARTBEAT_SECONDS - silence)
                continue
            written = clock.monotonic()

    def _moved(self, request: web.BaseRequest) -> bool:
        """Its address is left by a daemon that stays; one that drains has more to tell."""
        return _leaving(request) and not self._parts.state.draining

    def _block(self, record: Record) -> bytes:
        head = f"id: {record.id}\nevent: {record.type}\ndata: "
        return head.encode() + to_json(self._told(record)) + b"\n\n"

    def _told(self, record: Record) -> dict[str, object]:
        return record.as_json() if self._owner else record.in_public()


def _since(request: web.BaseRequest) -> int | None:
    """A browser that comes back names in the header what it saw last, and asks for the same URL.

    Raises InvalidRequest.
    """
    header = request.headers.get("Last-Event-ID", "")
    text = header or request.query.get("since", "")
    if not text:
        return None
    if not (text.isascii() and text.isdecimal()) or len(text) > _MOST_DIGITS:
        raise InvalidRequest("since: expected the id of an event", param="since")
    return int(text)


def _types(request: web.BaseRequest) -> frozenset[str]:
    """None: all. Raises InvalidRequest."""
    types = frozenset(filter(None, request.query.get("types", "").split(",")))
    if strange := sorted(types - {*TYPES, LOST}):
        raise InvalidRequest(f"types: {strange[0][:80]!r} is no type of events", param="types")
    return types


def _leaving(request: web.BaseRequest) -> bool:
    return isinstance(request.protocol, Connection) and request.protocol.leaving
