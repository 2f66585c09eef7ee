"""The measuring client: plain sockets, one thread, and no parsing until every answer is there.

While a load runs it only notes when which bytes came. What they mean is read afterwards, so its own
work is small and about the same for every server.
"""

from __future__ import annotations

import json
import math
import selectors
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]
Lines = Iterator[tuple[float, bytes]]
"""Every line of an answer that is not empty, with the time at which it was whole."""
_RECEIVE = 1 << 18
_LAST_CHUNK = b"0\r\n\r\n"


class BadAnswer(Exception):
    """A server did not deliver what was asked."""


class TooLate(BadAnswer):
    """It takes longer than it may."""


@dataclass
class Exchange:
    """One request and its raw answer: `arrivals` are (seconds since the start, bytes so far)."""

    sock: socket.socket
    received: bytearray = field(default_factory=bytearray)
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    expected: int | None = None

    @property
    def ended(self) -> float:
        return self.arrivals[-1][0]


@dataclass(frozen=True)
class Answer:
    """What one stream got: how many tokens, when each content record came (whole: when all did)."""

    tokens: int
    times: tuple[float, ...]
    ended: float


@dataclass(frozen=True)
class Api:
    """How a dialect asks, and where it says how much it answered."""

    path: str
    body: Callable[[str, Any, int, bool], Json]
    """Of a model, a prompt, the most tokens of the answer, and whether it is streamed."""
    read_stream: Callable[[Lines], tuple[list[float], int]]
    read_whole: Callable[[Json], int]


def run_load(
    connect: Callable[[], socket.socket],
    requests: list[bytes],
    timeout: float,
    window: Callable[[], None] = lambda: None,
    *,
    within: float = math.inf,
) -> list[Exchange]:
    """Send all requests at once over connections opened before; return when all are answered.

    `window` is called right before the first byte goes out and right after the last came in.
    Raises BadAnswer when nothing comes for `timeout`, or not all of it `within` so many seconds.
    """
    exchanges: list[Exchange] = []
    try:
        for _ in requests:
            exchanges.append(Exchange(connect()))  # noqa: PERF401 - those before are closed
        with selectors.DefaultSelector() as selector:
            for exchange in exchanges:
                selector.register(exchange.sock, selectors.EVENT_READ, exchange)
            window()
            _exchange(selector, exchanges, requests, timeout, within)
            window()
    finally:
        for exchange in exchanges:
            exchange.sock.close()
    return exchanges


def _exchange(
    selector: selectors.BaseSelector,
    exchanges: list[Exchange],
    requests: list[bytes],
    timeout: float,
    within: float,
) -> None:
    start = time.perf_counter()
    for exchange, request in zip(exchanges, requests, strict=True):
        exchange.sock.sendall(request)
    left = len(exchanges)
    while left:
        remaining = start + within - time.perf_counter()
        ready = selector.select(min(timeout, max(0.0, remaining)))
        if remaining <= 0:
            raise TooLate(f"it was not answered within {within:.0f} s")
        if not ready and timeout <= remaining:
            raise BadAnswer(f"nothing came for {timeout:g} s")
        for key, _ in ready:
            data = key.data.sock.recv(_RECEIVE)
            now = time.perf_counter() - start
            if _take(key.data, data, now):
                selector.unregister(key.fileobj)
                left -= 1


def _take(exchange: Exchange, data: bytes, now: float) -> bool:
    """Whether the answer is complete now."""
    if not data:
        return True
    exchange.received += data
    exchange.arrivals.append((now, len(exchange.received)))
    if exchange.expected is None:
        exchange.expected = _expected(exchange.received)
    if exchange.expected == -1:
        return data.endswith(_LAST_CHUNK) or exchange.received.endswith(_LAST_CHUNK)
    return exchange.expected is not None and 0 < exchange.expected <= len(exchange.received)


def _expected(received: bytearray) -> int | None:
    """Length of the whole answer; -1 chunked, 0 until it closes, None if not known yet."""
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = bytes(received[:end]).lower()
    if b"transfer-encoding: chunked" in head:
        return -1
    _, found, rest = head.partition(b"content-length:")
    return end + 4 + int(rest.split(b"\r\n", 1)[0]) if found else 0


def request_bytes(path: str, body: Json | None = None, id: str = "") -> bytes:
    """An HTTP/1.1 request; a GET where there is no body. `id`: what it is to be known by."""
    content = json.dumps(body).encode() if body is not None else b""
    method = "POST" if body is not None else "GET"
    known = f"X-Request-Id: {id}\r\n" if id else ""
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n{known}\r\n"
    )
    return head.encode() + content


def read_answer(exchange: Exchange, api: Api, *, stream: bool) -> Answer:
    """Raises BadAnswer unless it is a 200 that says how many tokens it holds."""
    head, _, _ = bytes(exchange.received).partition(b"\r\n\r\n")
    status = head.split(b" ", 2)[1:2]
    if status != [b"200"]:
        raise BadAnswer(_refusal(exchange, len(head) + 4))
    body, ends = _body(exchange, len(head) + 4)
    try:
        if not stream:
            return Answer(api.read_whole(json.loads(body)), (exchange.ended,), exchange.ended)
        times, tokens = api.read_stream(_lines(body, ends))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise BadAnswer(f"{error!r} in {body[-600:].decode('utf-8', 'replace')}") from error
    return Answer(tokens, tuple(times), exchange.ended)


def _body(exchange: Exchange, start: int) -> tuple[bytes, list[tuple[float, int]]]:
    """The body without its chunk framing, and (time, end) of each part of it as it came."""
    raw = bytes(exchange.received)
    if exchange.expected != -1:
        return raw[start:], [(at, end - start) for at, end in exchange.arrivals if end > start]
    body = bytearray()
    ends: list[tuple[float, int]] = []
    arrivals = iter(exchange.arrivals)
    at, upto = next(arrivals)
    position = start
    while True:
        line = raw.index(b"\r\n", position)
        size = int(raw[position:line].split(b";")[0], 16)
        if size == 0:
            return bytes(body), ends
        position = line + 2 + size
        body += raw[line + 2 : position]
        while upto < position:
            at, upto = next(arrivals)
        ends.append((at, len(body)))
        position += 2


def _lines(body: bytes, ends: list[tuple[float, int]]) -> Lines:
    parts = iter(ends)
    at, upto = next(parts)
    position = 0
    while (end := body.find(b"\n", position)) >= 0:
        while upto <= end:
            at, upto = next(parts)
        if line := body[position:end].strip():
            yield at, line
        position = end + 1


def read_openai_stream(lines: Lines) -> tuple[list[float], int]:
    """When records with text came, and how many tokens there were; -1: it does not say."""
    times: list[float] = []
    tokens = -1
    for at, line in lines:
        if not line.startswith(b"data: {"):
            continue
        record = json.loads(line[6:])
        if record.get("error"):
            raise BadAnswer(str(record["error"].get("message", record["error"])))
        if record.get("usage"):
            tokens = record["usage"]["completion_tokens"]
        if any(map(_text, record["choices"])):
            times.append(at)
    return times, tokens


def _text(choice: Json) -> str | None:
    """Of a chat's chunk, or of a completion's."""
    found: str | None = choice["delta"].get("content") if "delta" in choice else choice["text"]
    return found


def _refusal(exchange: Exchange, start: int) -> str:
    """What the server says of it, else how its answer begins."""
    try:
        body, _ = _body(exchange, start)
        error = json.loads(body)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError, IndexError, StopIteration):
        return bytes(exchange.received[:600]).decode("utf-8", "replace")
