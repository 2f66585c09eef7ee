"""Reads a request's body behind its walls: two timers, a size, and the encodings that are read.

The size holds for what comes and for what that is inflated.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from functools import cache, partial
from typing import TypeVar

from aiohttp import HttpVersion11, web

from mlxd.core.clock import within
from mlxd.core.errors import (
    InvalidRequest,
    PolicyLine,
    RequestTimeout,
    RequestTooLarge,
    UnsupportedEncoding,
)
from mlxd.dialects.fields import Json
from mlxd.policy.policy_set import PolicySet
from mlxd.server.body import JsonLimits, parse_json
from mlxd.server.connection import Connection
from mlxd.server.edge import BODY, CLOCK, TURNS, caller_of
from mlxd.server.inflating import ENCODINGS, Inflater

T = TypeVar("T")

AT_ONCE = 128 * 2**10
"""Bytes of a body that are parsed between two turns of the event loop."""
SHORT = 16 * 2**10
"""Bytes of a body that is kept as long as its request."""
DIGEST: web.RequestKey[bytes] = web.RequestKey("digest", bytes)
"""Of the request's path and body, once that is read."""
SIZE: web.RequestKey[int] = web.RequestKey("size", int)
"""Bytes of its body, once that is read."""
_PLAIN = frozenset({"", "identity"})


async def read_json(request: web.BaseRequest, policies: PolicySet, read: Callable[[Json], T]) -> T:
    """What `read` makes of the JSON object that the body is; a long one is parsed in a thread, each
    client's in its turn.

    Raises what `read_body` raises, InvalidRequest, and what `read` raises.
    """
    with _asking(request):
        return await _read_json(request, policies, read)


@contextmanager
def _asking(request: web.BaseRequest) -> Iterator[None]:
    """Meanwhile a daemon that stops waits for it as for a header that is coming."""
    connection = request.protocol
    if not isinstance(connection, Connection):
        yield
        return
    connection.asking = True
    try:
        yield
    finally:
        connection.asking = False


async def _read_json(request: web.BaseRequest, policies: PolicySet, read: Callable[[Json], T]) -> T:
    limits = policies.server.http.json_limits
    allowed = JsonLimits(
        max_depth=limits.max_depth,
        max_nodes=limits.max_nodes,
        max_string=int(limits.max_string),
        max_int_digits=limits.max_int_digits,
    )
    body = await read_body(request, policies)
    request[SIZE] = len(body)
    if len(body) <= SHORT:
        request[BODY] = body

    def line_of(name: str) -> PolicyLine:
        return policies.line(f"server.http.json_limits.{name}")

    def parse() -> T:
        digest = hashlib.sha256(request.path.encode("utf-8", "surrogateescape") + b"\0")
        digest.update(body)
        request[DIGEST] = digest.digest()
        return read(parse_json(body, allowed, line_of))

    if len(body) <= AT_ONCE:
        return parse()
    async with request[TURNS].turn(caller_of(request).name):
        return await in_thread(parse)


async def in_thread(work: Callable[[], T]) -> T:
    """What would take the event loop too long; on that where the system has no thread for it."""
    try:
        reader = _reader()
    except RuntimeError:
        return work()
    return await asyncio.get_running_loop().run_in_executor(reader, work)


@cache
def _reader() -> ThreadPoolExecutor:
    """One thread: several would take turns with the event loop, and its turn would come late. It is
    there when this returns, and stays. Raises RuntimeError.
    """
    reader = ThreadPoolExecutor(1, thread_name_prefix="long bodies")
    reader.submit(int)  # else it would begin with the first work, and keep that where it cannot
    return reader


async def read_body(request: web.BaseRequest, policies: PolicySet) -> bytes:
    """The whole body, inflated.

    Raises RequestTimeout, RequestTooLarge, UnsupportedEncoding, InvalidRequest (cut short, or not
    what its Content-Encoding says).
    """
    http = policies.server.http
    encoding = request.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in _PLAIN | ENCODINGS:
        raise UnsupportedEncoding(
            f"Content-Encoding {encoding[:40]!r} is not read; send gzip, deflate, zstd or none",
            would_pass="the same body in one of those",
        )
    if request.content_length is not None and request.content_length > http.max_body:
        raise _too_large(policies, request.content_length)
    _ask_for_it(request)
    try:
        if request.content.is_eof() and encoding in _PLAIN:
            return _come(request, policies)
        async with within(request[CLOCK], float(http.body_total_timeout)):
            if encoding in _PLAIN:
                return await _read(request, policies)
            return await _inflate(request, policies, encoding)
    except TimeoutError:
        raise _too_slow(policies.line("server.http.body_total_timeout")) from None
    except web.RequestPayloadError as error:
        raise InvalidRequest("the body is cut short") from error


def _come(request: web.BaseRequest, policies: PolicySet) -> bytes:
    """A body that has come with its header, as short ones do: nothing is waited for."""
    body = request.content.read_nowait()
    if len(body) > policies.server.http.max_body:
        raise _too_large(policies, len(body))
    return body


def _ask_for_it(request: web.BaseRequest) -> None:
    """A client that expects it, such as curl with a long body, waits for the word to go on."""
    expected = request.headers.get("Expect", "").strip().lower() == "100-continue"
    if expected and request.version >= HttpVersion11 and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


async def pieces_of(request: web.BaseRequest, policies: PolicySet) -> AsyncGenerator[bytes, None]:
    """A body of any size as it comes, as long as it comes. Raises RequestTimeout, InvalidRequest,
    and UnsupportedEncoding: it is a file, and taken as it is.
    """
    if request.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
        raise UnsupportedEncoding(
            "an upload is taken without any Content-Encoding", would_pass="the file as it is"
        )
    _ask_for_it(request)
    try:
        async with aclosing(_pieces(request, policies)) as pieces:
            async for piece in pieces:
                yield piece
    except web.RequestPayloadError as error:
        raise InvalidRequest("the body is cut short") from error


async def _pieces(request: web.BaseRequest, policies: PolicySet) -> AsyncGenerator[bytes, None]:
    while not request.content.at_eof():
        try:
            async with within(request[CLOCK], float(policies.server.http.body_idle_timeout)):
                piece = await request.content.readany()
        except TimeoutError:
            raise _too_slow(policies.line("server.http.body_idle_timeout")) from None
        yield piece


async def _read(request: web.BaseRequest, policies: PolicySet) -> bytes:
    read: list[bytes] = []
    size = 0
    async with aclosing(_pieces(request, policies)) as pieces:
        async for piece in pieces:
            size += len(piece)
            if size > policies.server.http.max_body:
                raise _too_large(policies, size)
            read.append(piece)
    return b"".join(read)


async def _inflate(request: web.BaseRequest, policies: PolicySet, encoding: str) -> bytes:
    most = int(policies.server.http.max_body)
    inflater = Inflater(encoding, most)
    read: list[bytes] = []
    come = 0
    async with aclosing(_pieces(request, policies)) as pieces:
        async for piece in pieces:
            come += len(piece)
            read += await in_thread(partial(inflater.feed, piece))
            if max(come, inflater.size) > most:
                raise _too_large(policies, max(come, inflater.size))
    inflater.end()
    del inflater  # with its window
    return b"".join(read)


def _too_large(policies: PolicySet, size: int) -> RequestTooLarge:
    """`size`: of its body as far as that is known."""
    limit = int(policies.server.http.max_body)
    return RequestTooLarge(
        f"the request's body is larger than {limit} bytes",
        policy=policies.line("server.http.max_body"),
        numbers={"body_bytes_at_least": size, "allowed_bytes": limit},
        would_pass=f"a body of at most {limit} bytes",
    )


def _too_slow(line: PolicyLine) -> RequestTimeout:
    return RequestTimeout(
        "the request's body came too slowly",
        policy=line,
        numbers={"limit": line.value},
        would_pass="a body that comes faster, or a shorter one",
    )
