"""One client connection: what it waits for and since when, what it is told at its end, and requests
that are answered on it before there is a handler.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from aiohttp import HttpVersion11, StreamReader, web
from aiohttp.http_exceptions import BadHttpMessage, HttpProcessingError, LineTooLong
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from mlxd.core.clock import Clock
from mlxd.core.errors import InvalidRequest, MlxdError
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.schema.server import is_loopback
from mlxd.server.errors import Render, error_response, identity, new_request_id, words_at
from mlxd.server.farewells import gives_way, too_slow
from mlxd.server.forwarded import client_at
from mlxd.server.framing import checked
from mlxd.server.giving_way import Holding
from mlxd.server.silence import acknowledged, bound_silence, queued, unheard
from mlxd.server.walls import too_long_headers, too_many_headers

if TYPE_CHECKING:
    from mlxd.server.connections import GuardedServer

log = logging.getLogger(__name__)

_COMING_SECONDS = 1.0
"""For a request on a new connection, or the rest of a header, while the daemon stops."""
_NEXT_SECONDS = 0.1
"""For the next request after an answer, while the daemon stops."""
_SCARCE_SECONDS = 1.0
"""For a header, when hardly any file is left."""
_LEAST_TAKEN = 1024
"""Bytes of what waits for it that a client takes within `timeouts.client_write`, or is cut."""
_BEGINNING = 256
"""Bytes of a request that are kept until the next one: they tell which API it is of."""
_ASKED = re.compile(rb"[A-Z]+ (/[^ ?#]*)")
_TOO_MANY_HEADERS = "Too many headers received"
"""aiohttp's words: it has no exception of its own for it."""


_Parsed = tuple[RawRequestMessage, StreamReader]


class Answers(Protocol):
    """Who answers some requests before there is a handler."""

    def answer(
        self, connection: Connection, message: RawRequestMessage, body: bytes
    ) -> bytes | None: ...


class _Parser:
    """aiohttp's, without the requests that are answered at once; stricter than it is."""

    def __init__(
        self,
        parser: Any,
        unanswered: Callable[[Sequence[_Parsed]], int],
        torn: Callable[[], bool],
    ) -> None:
        """`unanswered` answers the first of some, and returns how many those were. `torn` is asked
        when nothing more can be read: true if a request is told so, whose body ends there.
        """
        self._parser = parser
        self._unanswered = unanswered
        self._torn = torn

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parser, name)

    def feed_data(self, data: bytes) -> tuple[Sequence[_Parsed], bool, bytes]:
        while True:
            try:
                messages, upgraded, tail = self._parser.feed_data(data)
            except HttpProcessingError:
                if self._torn():
                    return (), False, b""
                raise
            messages, wrong = _until_wrong(messages)
            answered = self._unanswered(messages) if messages else 0
            for _ in range(answered):
                self._parser.message_consumed()
            if wrong is not None:
                return [*messages[answered:], wrong], False, b""
            if answered < len(messages) or answered < 2:
                return messages[answered:], upgraded, tail
            data = b""  # there may be more: it gives so many at a time


def _until_wrong(messages: Sequence[_Parsed]) -> tuple[Sequence[_Parsed], Any]:
    """Those before the first that cannot be taken, which are answered before it is; and that one as
    aiohttp has it, None: there is none.
    """
    found: list[_Parsed] = []
    for message, payload in messages:
        try:
            found.append((checked(message), payload))
        except BadHttpMessage as error:
            return found, (_ErrInfo(status=400, exc=error, message=error.message), EMPTY_PAYLOAD)
    return found, None


class Connection(RequestHandler):
    """One client connection that knows since when it has been waiting, and for what."""

    __slots__ = (
        "_acknowledged", "_answered", "_answers", "_beginning", "_begun", "_bounds", "_clock",
        "_counted", "_gone", "_handed", "_header_since", "_heard", "_idle_since", "_server",
        "_settled", "_silence", "_unread", "_unread_since", "_waiting", "_wire", "asking",
        "following", "leaving", "outside", "scarce",
    )  # fmt: skip

    def __init__(
        self, server: GuardedServer, clock: Clock, bounds: PolicySet, **options: Any
    ) -> None:
        """`bounds` are the policies by which aiohttp's parser was bounded."""
        super().__init__(server, **options)
        self._server = server
        self._bounds = bounds
        self._beginning = b""
        """Of the request that came last."""
        self._answers = server.answers
        self._parser = _Parser(  # type: ignore[assignment]
            self._parser, self._answer_first, self._tear_body
        )
        self._handed = self._answered = 0
        """Requests that aiohttp was given, and those of them whose answers are written."""
        self._clock = clock
        self._heard = clock.monotonic()
        """When something of it came last."""
        self._header_since: float | None = self._heard
        self._begun = self._heard
        """When the request began that came last."""
        self._idle_since: float | None = None
        self._waiting = 0
        """Bytes that the kernel has not taken."""
        self._unread = 0
        """Those and what the kernel has."""
        self._acknowledged: int | None = None
        self._unread_since = 0.0
        self._settled = -1
        """Requests whose answers had all been taken when that was last looked at."""
        self._wire: asyncio.Transport | None = None
        self._counted: str | None = None
        """The peer for whom it is counted."""
        self._gone = False
        self._silence = 0.0
        self.outside = True
        """It came by an address that other machines can reach, whatever policy names by now."""
        self.leaving = False
        """Its address will not be served for long: each answer says `Connection: close`."""
        self.scarce = False
        """There was no file for it but one that is kept for questions about the daemon's health."""
        self.asking = False
        """A body is read or parsed: nobody knows yet what is asked."""
        self.following = False
        """What is said on it ends with the daemon, and never before."""

    @property
    def peer(self) -> str:
        """The address of its other end; empty where there is none."""
        name = self.peername
        return str(name[0]) if isinstance(name, tuple) else str(name or "")

    @property
    def open(self) -> bool:
        """False once it is over; true before it has begun."""
        if self._manager is None:
            return False
        return self._wire is None or not self._wire.is_closing()

    @property
    def answering(self) -> bool:
        """Somebody waits for an answer, or has not taken all of one. False for who follows."""
        if self.following or self._wire is None:
            return False
        asked = self._request_in_progress or bool(self._messages)
        return asked or self._wire.get_write_buffer_size() > 0

    @property
    def expecting(self) -> bool:
        """A request may be on its way: the client has just come, or has just had an answer, or has
        begun to ask.
        """
        if not self.open or self._close or self.following:
            return False
        if self.asking:
            return True
        if self.answering:
            return False
        if not self.waiting:
            return True  # aiohttp turns from one request to the next
        if self._header_since is not None:
            return self._clock.monotonic() - self._header_since < _COMING_SECONDS
        answered = self._next_keepalive_close_time - self._keepalive_timeout
        return self._loop.time() - answered < _NEXT_SECONDS

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        # aiohttp lets go of a transport that it closes, though what is unread keeps it open.
        self._wire = self.transport
        self.outside = _is_outside(transport)
        self._server.watch()
        self._enter()

    def _enter(self) -> None:
        """Be counted, or refused."""
        peer = self.peer
        refusal = self._server.enter(peer)
        if refusal:
            self.refuse(refusal)
        else:
            self._counted = peer

    def connection_lost(self, exc: BaseException | None) -> None:
        if isinstance(exc, TimeoutError):  # the kernel's: see `silence`
            log.info("a client reads nothing of its answer, or is gone: its connection is over")
        if self._counted is not None:
            self._server.leave(self._counted)
            self._counted = None
        super().connection_lost(exc)

    def _answer_first(self, messages: Sequence[_Parsed]) -> int:
        """Answer the first of these requests as long as that can be done at once, in their order
        and behind every earlier answer; returns how many were.
        """
        count = 0
        while count < len(messages) and self._answer_at_once(*messages[count]):
            count += 1
        self._handed += len(messages) - count
        return count

    def _answer_at_once(self, message: RawRequestMessage, payload: StreamReader) -> bool:
        """aiohttp needs a turn or two of the loop to wait again after an answer: a client that is
        quick asks before that, and is behind nobody.
        """
        answers, wire = self._answers, self.transport
        if answers is None or wire is None or self._handed > self._answered or self._messages:
            return False
        if self.leaving or self.scarce or self._close or wire.get_write_buffer_size():
            return False
        body = _whole(payload)
        said = answers.answer(self, message, body) if body is not None else None
        if said is None:
            return False
        wire.write(said)
        self._request_count += 1
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        return True

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        if "Expect" in request.headers and not request.content.is_eof():
            resp.force_close()  # it was not asked for its body: who knows whether that comes
        if request.version < HttpVersion11 and resp.content_length is None:
            resp.force_close()  # it ends with its connection, which aiohttp leaves open
        if request.content.exception() is not None:
            # What is left of a body that cannot be read is not waited for, nor its end searched.
            request.content.feed_eof()
            resp.force_close()
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            self._answered += 1

    def data_received(self, data: bytes) -> None:
        served = self._request_count
        self._heard = self._clock.monotonic()
        if not self._beginning or (served and self._header_since is None):
            self._beginning = data[:_BEGINNING]
        super().data_received(data)
        self._idle_since = None
        if self._request_count > served:
            self._begun = self._heard if self._header_since is None else self._header_since
            self._header_since = None
        elif self._header_since is None and self.waiting:
            self._header_since = self._heard

    @property
    def holding(self) -> Holding | None:
        """What it is held for, where it gives way to others."""
        if not self.open or self._close or self.following:
            return None
        if self._body_coming() is not None:
            return Holding.COMING
        if self._header_since is not None:
            return Holding.COMING
        return Holding.IDLE if self.waiting else None

    @property
    def held_since(self) -> float:
        """When that began for which it is held; where it is idle, when that was seen."""
        if self._header_since is not None:
            return self._header_since
        if not self.waiting:
            return self._begun
        return self._clock.monotonic() if self._idle_since is None else self._idle_since

    @property
    def silent_since(self) -> float:
        """When something of it came last."""
        return self._heard

    @property
    def _socket(self) -> socket.socket | None:
        """None once it is gone."""
        return self._wire.get_extra_info("socket") if self._wire is not None else None

    @property
    def unheard(self) -> bool:
        """The daemon was busy meanwhile: what came of it will be read in the next turn."""
        sock = self._socket
        return sock is not None and unheard(sock)

    def _body_coming(self) -> StreamReader | None:
        """The body that a request waits for, with nothing answered yet."""
        request = self._current_request
        if request is None or request.content.is_eof() or request.writer.output_size:
            return None
        return request.content if request.content.exception() is None else None

    def _tear_body(self) -> bool:
        """Its chunks are none: have the request told so that waits for it, if one does."""
        body = self._messages[-1][1] if self._messages else self._body_coming()
        if body is None or body.is_eof() or body.exception() is not None:
            return False
        body.set_exception(InvalidRequest("the chunks of the request's body are not valid HTTP"))
        return True

    def give_way(self, policies: PolicySet) -> None:
        """To another, by these."""
        body = self._body_coming()
        if body is not None:
            body.set_exception(gives_way(policies, "body"))
        else:
            coming = self.holding is Holding.COMING
            self.refuse(self._farewell(gives_way(policies, "header"), policies) if coming else b"")

    def _farewell(self, why: MlxdError, policies: PolicySet) -> bytes:
        return self._server.farewells.own(why, policies, self._words, client_at(self.peer))

    @property
    def waiting(self) -> bool:
        """No request is being served."""
        return self._waiter is not None and not self._waiter.done()

    def overdue(self, now: float, policies: PolicySet) -> bytes | None:
        """What to say before closing it, by these; None while it may stay."""
        if not self.waiting:
            self._idle_since = None
            return None
        if self._header_since is not None:
            limit = float(policies.server.http.header_timeout)
            scarce = self.scarce and limit > _SCARCE_SECONDS
            if now - self._header_since < (_SCARCE_SECONDS if scarce else limit) or self.unheard:
                return None
            return self._farewell(too_slow(policies, scarce=scarce), policies)
        if self._idle_since is None:
            self._idle_since = now
        keep_alive = float(policies.server.http.keep_alive)
        over = self._gone or now - self._idle_since >= keep_alive
        return b"" if over and not self.unheard else None

    def end_if_unread(self, now: float, limit: float) -> None:
        """Cut the connection once its client has taken hardly anything for `limit` seconds."""
        if self._wire is None:
            return
        if limit != self._silence:
            self._bound_silence(limit)
        if self._settled == self._request_count:
            return  # nothing was written since, and the system need not be asked
        waiting = self._wire.get_write_buffer_size()
        queued, acknowledged = self._sent()
        if acknowledged is None and not waiting:
            queued = 0  # what is on its way may always be as much
        unread = waiting + queued
        if unread == 0 or self._unread == 0 or self._takes(waiting, unread, acknowledged):
            self._unread_since = now
            self._acknowledged = acknowledged
        elif now - self._unread_since >= limit:
            log.info("a client reads nothing of its answer, or hardly: its connection is cut")
            self._wire.abort()
        self._waiting, self._unread = waiting, unread
        if self.waiting and not unread:  # before a handler begins, too, there is a turn or two
            self._settled = self._request_count

    def _takes(self, waiting: int, unread: int, acknowledged: int | None) -> bool:
        """Enough since that was last so; where nobody knows how much, anything at all."""
        if acknowledged is None or self._acknowledged is None:
            return waiting < self._waiting or unread < self._unread
        return acknowledged - self._acknowledged >= min(_LEAST_TAKEN, self._unread)

    def _bound_silence(self, limit: float) -> None:
        """What the kernel has not sent yet is not seen here, and may be much."""
        self._silence = limit
        sock = self._socket
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            bound_silence(sock, limit)

    def _sent(self) -> tuple[int, int | None]:
        """Bytes that the kernel has, and that the client has acknowledged.

        The kernel takes the next ones only when many of those are gone.
        """
        sock = self._socket
        return (queued(sock), acknowledged(sock)) if sock is not None else (0, None)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unread = 0

    def refuse(self, farewell: bytes) -> None:
        """Say the last word and close."""
        if self.transport is not None:
            if farewell:
                self.transport.write(farewell)
            self.force_close()

    def part(self) -> bool:
        """Tell a client who asks nothing that it ends; false if an answer is under way.

        A request that crosses this word is not reset but finds the connection ended, and a client
        that asks later sees so before.
        """
        if not self.waiting or self._wire is None or self._wire.is_closing():
            return False
        self.close()
        with contextlib.suppress(OSError, RuntimeError):
            self._wire.write_eof()
        return True

    def leave(self) -> None:
        """Its address is served no more: end it once nothing is under way or coming on it.

        aiohttp's own `close` reads no more of a request that is coming, and leaves a connection
        that is idle open, with nobody to answer on it.
        """
        self.leaving = self._gone = True
        if self.waiting and self._header_since is None and not self.unheard:
            self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """A request that aiohttp itself could not read; nothing of its internals is shown."""
        response = error_response(self._unreadable(exc), self._words)
        request_id = new_request_id()
        self._server.farewells.log(f"an unreadable request {response.status}", request_id)
        response.headers.update(identity(request_id))
        response.headers["X-Mlxd-Policy"] = str(self._server.generation)
        response.force_close()
        request._version = HttpVersion11  # aiohttp's own is of nobody's request
        return response

    def _unreadable(self, why: BaseException | None) -> MlxdError:
        """What a client is told that sent a request for which aiohttp had but these words."""
        if isinstance(why, LineTooLong):
            return too_long_headers(self._bounds, "the request's line or one of its headers is", {})
        if isinstance(why, BadHttpMessage) and why.message == _TOO_MANY_HEADERS:
            return too_many_headers(self._bounds, {})
        return InvalidRequest("the request is not valid HTTP")

    @property
    def _words(self) -> Render:
        """Those of the API that the request is of which came last, where its path is known."""
        asked = _ASKED.match(self._beginning)
        return words_at(asked[1].decode("ascii", "replace") if asked is not None else "")


def _is_outside(transport: asyncio.BaseTransport) -> bool:
    """Whether its client may be on another machine; one that has reset it before it was taken says
    nothing of that on macOS.
    """
    try:
        own = transport.get_extra_info("sockname")
    except OSError:
        return True
    return not (isinstance(own, tuple) and is_loopback(str(own[0])))


def _whole(payload: StreamReader) -> bytes | None:
    """A body that has come with its header; None: of any other. It is not taken out."""
    if type(payload) is not StreamReader or not payload.is_eof() or payload.exception():
        return None
    pieces = payload._buffer
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
