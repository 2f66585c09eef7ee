"""A flood of refusals: whoever asks again what was refused a moment ago is told the same, at once.

The first of each second go the ordinary way: each is logged, told as an event and kept. Then a
request that equals one which was just refused, but for its id, gets the same answer before there is
a handler, its body is parsed or its model looked up. Nothing is decided here: who refused says
whether that still holds (`Again`), and counts it. Every half second one goes the ordinary way again
and renews what is said, so that times and places in it are at most a second old.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from aiohttp import HttpVersion11, web
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http_parser import RawRequestMessage

from mlxd.core.clock import Clock
from mlxd.core.errors import Again, MlxdError
from mlxd.core.story import Story
from mlxd.dialects import ollama
from mlxd.dialects.base import to_json
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.store import PolicyStore
from mlxd.server.connection import Connection
from mlxd.server.edge import (
    BODY,
    FAILURE,
    MARKS,
    STORY,
    caller_of,
    client_of,
    path_of,
    policies_of,
)
from mlxd.server.errors import MAX_ID, STATUS, error_body, given_id
from mlxd.telemetry.metrics import Metrics
from mlxd.telemetry.rejections import Rejections

log = logging.getLogger("mlxd.access")

ORDINARY = 10
"""Repetitions of each second that go the ordinary way, all clients together."""
HOLDS_SECONDS = 1.0
"""It is said anew when half of that is over."""
_TELL_SECONDS = 1.0
_MOST_KNOWN = 256
_IDS = frozenset(("x-request-id", "request-id"))
_ITS_OWN = frozenset((b"x-request-id", b"content-length"))
"""Headers in which a repetition may differ."""
_ASKS: dict[str, Callable[[bytes], bool]] = {
    "/v1/chat/completions": lambda body: True,
    "/v1/completions": lambda body: True,
    "/v1/messages": lambda body: True,
    "/v1/responses": lambda body: True,
    ollama.ChatCodec.path: partial(ollama.surely_asks, "messages"),
    ollama.GenerateCodec.path: partial(ollama.surely_asks, "prompt"),
}
"""Whether a body surely asks a model to answer: it does not load one, say, or count tokens."""

_Head = tuple[str, str, tuple[tuple[bytes, bytes], ...]]
"""Where a request comes from, its target, and its headers."""
_Key = tuple[_Head, bytes | None]
"""And its body; None: any."""
Told = Callable[[Story, int, float, float], None]
"""Of the request that was refused: how many repeated it, and when the first and the last came."""


@dataclass(slots=True)
class _Refused:
    """What was said to a request, with a place for an id."""

    error: MlxdError
    again: Again
    policies: PolicySet
    said: float
    """On the monotonic clock."""
    renewed: float
    """When one was let on last that will say it anew."""
    story: Story
    path: str
    model: str
    client: str
    start: bytes
    """Up to the length of the body."""
    rest: bytes
    """Of the head."""
    body: bytes
    count: int = 0
    """Repetitions that are still to be told."""
    first: float = 0.0
    """When the first of them came, in seconds since the epoch."""
    last: float = 0.0

    def repeated(self, now: float) -> None:
        """Once more, at this wall time."""
        self.first = self.first if self.count else now
        self.last = now
        self.count += 1

    def replaces(self, before: _Refused) -> None:
        """It tells of its repetitions, too."""
        self.count, self.first, self.last = before.count, before.first, before.last


class Repeats:
    """Learns from the edge, answers for connections."""

    def __init__(
        self, store: PolicyStore, clock: Clock, rejections: Rejections, metrics: Metrics
    ) -> None:
        self._store = store
        self._clock = clock
        self._rejections = rejections
        self._metrics = metrics
        self._known: dict[_Key, _Refused] = {}
        self._place = secrets.token_hex(12).encode()
        """Stands for an id."""
        self._ids = _Ids()
        self._second = 0.0
        self._ordinary = 0
        """Repetitions that went the ordinary way in the second from then on."""
        self._telling: asyncio.TimerHandle | None = None
        self.on_told: Told = lambda story, count, first, last: None
        """For those who keep each request: repetitions have no story of their own."""

    def learn(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """A request was refused, the ordinary way."""
        failure, now = request[FAILURE], self._clock.monotonic()
        if failure.error.again is None or not isinstance(response, web.Response):
            return
        key = _key(request, failure.error.again)
        if key is None or request[MARKS].rules:
            return
        if key not in self._known and len(self._known) >= _MOST_KNOWN:
            return
        text = to_json(error_body(failure.error, failure.render, self._place.decode()))
        lines = "".join(f"{name}: {value}\r\n" for name, value in self._headers(response))
        status_line = f"HTTP/1.1 {response.status} {response.reason}"
        known = _Refused(
            error=failure.error,
            again=failure.error.again,
            policies=policies_of(request),
            said=now,
            renewed=now,
            story=request[STORY],
            path=request.path,
            model=request[STORY].model,
            client=client_of(request),
            start=f"{status_line}\r\n{lines}Content-Length: ".encode(),
            rest=f"\r\nDate: {rfc822_formatted_time()}\r\n\r\n".encode(),
            body=text,
        )
        if key in self._known:
            known.replaces(self._known[key])
        self._known[key] = known
        self._arm()

    def _headers(self, response: web.Response) -> Iterable[tuple[str, str]]:
        place = self._place.decode()
        for name, value in response.headers.items():
            yield name, place if name.lower() in _IDS else value

    def answer(
        self, connection: Connection, message: RawRequestMessage, body: bytes
    ) -> bytes | None:
        """The whole answer to a request that repeats a refused one; None: it is to be served."""
        given = message.headers.get("X-Request-Id", "")
        if not self._known or not _is_plain(message) or len(given) > MAX_ID:
            return None
        known = self._find(_head(connection, message.path, message.raw_headers), body)
        if known is None or self._goes_on(known) or not known.again.still():
            return None
        known.repeated(self._clock.wall())
        return self._said(known, given)

    def _goes_on(self, known: _Refused) -> bool:
        """Whether a repetition is to go the ordinary way: as one of the first in a second, because
        policies have changed, or to renew what is said. Others need not wait for that one.
        """
        now = self._clock.monotonic()
        if now - self._second >= _TELL_SECONDS:
            self._second, self._ordinary = now, 0
        if self._ordinary < ORDINARY:
            self._ordinary += 1
            return True
        if now - known.said >= HOLDS_SECONDS or known.policies is not self._store.current:
            return True
        if now - known.renewed >= HOLDS_SECONDS / 2:
            known.renewed = now
            return True
        return False

    def _find(self, head: _Head, body: bytes) -> _Refused | None:
        known = self._known.get((head, body))
        if known is None:
            known = self._known.get((head, None))
            if known is not None and not _ASKS[known.path](body):
                return None
        return known

    def _said(self, known: _Refused, given: str) -> bytes:
        id = given_id(given) or self._ids.next()
        body = known.body
        if self._place in body:
            body = body.replace(self._place, to_json(id)[1:-1])
        start = known.start.replace(self._place, id.encode())
        return b"%b%d%b%b" % (start, len(body), known.rest, body)

    def close(self) -> None:
        """Tell at once what is still to be told, and know nothing any more."""
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
        self._tell()
        self._known.clear()

    def _arm(self) -> None:
        if self._telling is None:
            loop = asyncio.get_running_loop()
            self._telling = loop.call_later(_TELL_SECONDS, self._look)

    def _look(self) -> None:
        self._telling = None
        self._tell()
        since = self._clock.monotonic() - HOLDS_SECONDS
        self._known = {key: one for key, one in self._known.items() if one.said > since}
        if self._known:
            self._arm()

    def _tell(self) -> None:
        """Their number is told, in one line and one event for each of those they repeat."""
        for known in self._known.values():
            if not known.count:
                continue
            status = STATUS[known.error.code]
            log.info(
                "POST %s %s, and %d more like it",
                path_of(known.path),
                status,
                known.count,
                extra={"model": known.model},
            )
            self._metrics.refused(known.error.code, known.count)
            self._rejections.add(
                known.error, status, model=known.model, client=known.client, count=known.count
            )
            self.on_told(known.story, known.count, known.first, known.last)
            known.count = 0


class _Ids:
    """As `new_request_id` makes them; the system is asked for many at a time."""

    _EACH, _AT_ONCE = 24, 256
    """Hex digits; ids."""

    def __init__(self) -> None:
        self._drawn: list[str] = []

    def next(self) -> str:
        if not self._drawn:
            digits = secrets.token_hex(self._EACH * self._AT_ONCE // 2)
            starts = range(0, len(digits), self._EACH)
            self._drawn = [digits[at : at + self._EACH] for at in starts]
        return self._drawn.pop()


def _key(request: web.BaseRequest, again: Again) -> _Key | None:
    """None: its like goes the ordinary way, always."""
    connection, message = request.protocol, request._message
    if not isinstance(connection, Connection) or not _is_plain(message):
        return None
    if "x-request-id" in caller_of(request).headers:
        return None  # a rate rule counts by it
    if connection.leaving or "Expect" in request.headers or "Connection" in request.headers:
        return None
    head = _head(connection, message.path, message.raw_headers)
    if again.whatever and request.path in _ASKS:
        return head, None
    body = request.get(BODY)
    return (head, body) if body is not None else None


def _is_plain(message: RawRequestMessage) -> bool:
    """A POST as nearly every client sends it: all else goes the ordinary way."""
    return (
        message.method == "POST"
        and message.version == HttpVersion11
        and not (message.should_close or message.upgrade or message.chunked)
        and message.compression is None
    )


def _head(connection: Connection, target: str, headers: Iterable[tuple[bytes, bytes]]) -> _Head:
    rest = tuple(header for header in headers if header[0].lower() not in _ITS_OWN)
    return connection.peer, target, rest
