"""One connection: each request on it gets one answer, and its client knows where that ends."""

from __future__ import annotations

import asyncio
import errno
import re
import socket
from collections.abc import AsyncIterator, Callable
from unittest.mock import Mock

import pytest
from aiohttp import web, web_protocol

from mlxd.control.turns import Turns
from mlxd.core.caller import Caller
from mlxd.core.clock import ManualClock, SystemClock
from mlxd.core.errors import MlxdError
from mlxd.policy.load import load
from mlxd.policy.store import PolicyStore
from mlxd.server.connection import Connection
from mlxd.server.connections import GuardedServer
from mlxd.server.edge import CALLER, CLOCK, TURNS
from mlxd.server.errors import error_response, in_ollama
from mlxd.server.intake import AT_ONCE, read_body, read_json
from tests.support.daemon import free_port

POLICIES = load()
LIVEZ = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
OLD = b"GET /%b HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
CHUNKED = b"POST /body HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
LONG_AFTER = 3600.0


async def _answer(request: web.BaseRequest) -> web.StreamResponse:
    request[CLOCK], request[TURNS], request[CALLER] = SystemClock(), Turns(), Caller("me")
    if request.path == "/stream":
        stream = web.StreamResponse()
        await stream.prepare(request)
        await stream.write(b"a stream")
        return stream
    try:
        if request.path == "/json":
            return web.Response(text=await read_json(request, POLICIES, str))
        return web.Response(body=await read_body(request, POLICIES) or b"ok")
    except MlxdError as error:
        return error_response(error, in_ollama)


class Bench:
    """A server with one client."""

    def __init__(self, server: GuardedServer, clock: ManualClock, client: socket.socket) -> None:
        self.server = server
        self.clock = clock
        self.client = client

    @property
    def connection(self) -> Connection:
        (found,) = self.server.connections
        assert isinstance(found, Connection)
        return found

    async def received(self) -> bytes:
        return await asyncio.to_thread(self.client.recv, 4096)

    async def rest(self) -> bytes:
        """Up to the end of the connection."""
        told = b""
        while piece := await self.received():
            told += piece
        return told

    async def asked(self) -> None:
        """It has had an answer, and its connection waits for the next request."""
        self.client.sendall(LIVEZ)
        assert b" 200 " in await self.received()
        await until(lambda: self.connection.waiting)


async def until(fact: Callable[[], bool]) -> None:
    for _ in range(2000):
        if fact():
            return
        await asyncio.sleep(0.001)
    pytest.fail("it never came to that")


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    clock = ManualClock()
    server = GuardedServer(_answer, PolicyStore(POLICIES), clock)
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(server.connection, "127.0.0.1", free_port())
    with socket.create_connection(listening.sockets[0].getsockname(), timeout=5) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield Bench(server, clock, client)
    listening.close()
    await server.shutdown(0.1)


async def test_what_has_no_length_ends_with_its_connection_where_there_are_no_chunks(
    bench: Bench,
) -> None:
    bench.client.sendall(OLD % b"stream")
    assert (await bench.rest()).endswith(b"\r\n\r\na stream")


async def test_what_has_a_length_keeps_the_connection_of_an_old_client_that_asks_for_it(
    bench: Bench,
) -> None:
    for _ in range(2):
        bench.client.sendall(OLD % b"livez")
        answer = (await bench.received()).lower()
        assert b"connection: keep-alive\r\n" in answer
        assert answer.endswith(b"\r\n\r\nok")


@pytest.mark.parametrize("sent", [b"", b"2\r\n{}\r\n"])
async def test_chunks_that_are_none_are_refused_as_they_come(bench: Bench, sent: bytes) -> None:
    await bench.asked()
    bench.client.sendall(CHUNKED + sent)
    await until(lambda: bench.connection.answering)
    bench.client.sendall(b"zz\r\n")
    answer = await bench.rest()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1") == 1


async def test_chunks_that_are_none_are_refused_where_a_request_waits_for_its_turn(
    bench: Bench,
) -> None:
    await bench.asked()
    connection = bench.connection
    connection.data_received(CHUNKED)
    connection.data_received(b"zz\r\n")
    answer = await bench.rest()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"chunks" in answer


@pytest.mark.parametrize("begun", [b"", LIVEZ[:20]], ids=["idle", "header"])
async def test_what_came_in_time_is_read_however_late_the_timers_are_looked_at(
    bench: Bench, begun: bytes
) -> None:
    await bench.asked()
    bench.client.sendall(begun)
    await until(lambda: not begun or bench.connection._header_since is not None)
    bench.server._look_at(bench.connection)
    bench.client.sendall(LIVEZ[len(begun) :])
    bench.clock.advance(LONG_AFTER)
    bench.server._look_at(bench.connection)
    assert (await bench.received()).startswith(b"HTTP/1.1 200 ")


async def test_a_request_that_is_not_taken_costs_none_that_came_before_it(bench: Bench) -> None:
    """In one piece: they are answered first, and nothing that came behind it is."""
    wrong = b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n"
    bench.client.sendall(LIVEZ + LIVEZ + wrong + LIVEZ)
    statuses = re.findall(rb"HTTP/1\.1 (\d+)", await bench.rest())
    assert statuses == [b"200", b"200", b"400"]


async def test_a_request_that_has_come_is_answered_though_its_address_goes(bench: Bench) -> None:
    await bench.asked()
    bench.client.sendall(LIVEZ)
    bench.connection.leave()
    assert (await bench.received()).startswith(b"HTTP/1.1 200 ")
    await until(lambda: bench.connection.waiting)
    bench.server._look_at(bench.connection)
    assert await bench.received() == b""


@pytest.mark.parametrize("length", [2, AT_ONCE + 1], ids=["short", "parsed in a thread"])
async def test_a_request_whose_body_is_not_whole_is_awaited_like_one_whose_header_is_not(
    bench: Bench, length: int
) -> None:
    await bench.asked()
    body = b"{}".ljust(length)
    bench.client.sendall(
        b"POST /json HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % length
    )
    await until(lambda: bench.connection.answering)
    bench.clock.advance(LONG_AFTER)
    assert bench.server.expecting == 1
    bench.client.sendall(body[:1])
    await until(lambda: not bench.connection.unheard)
    assert bench.server.expecting == 1
    await asyncio.to_thread(bench.client.sendall, body[1:])
    assert (await bench.received()).startswith(b"HTTP/1.1 200 ")
    assert not bench.connection.asking


def _refused(*_: object) -> None:
    raise OSError(errno.EINVAL, "Invalid argument")


async def test_one_whose_options_cannot_be_set_is_a_connection_like_others(
    monkeypatch: pytest.MonkeyPatch, bench: Bench
) -> None:
    """As on macOS, where its client has reset it meanwhile: it is known, and its end is seen."""
    monkeypatch.setattr(web_protocol, "tcp_keepalive", _refused)
    await bench.asked()


async def test_one_whose_address_cannot_be_told_is_a_connection_like_others() -> None:
    """As the one above: uvloop raises what the system says."""

    def told(name: str, default: object = None) -> object:
        if name == "sockname":
            _refused()
        return default

    transport = Mock(asyncio.Transport)
    transport.get_extra_info.side_effect = told
    connection = GuardedServer(_answer, PolicyStore(POLICIES), SystemClock()).connection()
    connection.connection_made(transport)
    assert connection.outside
    connection.connection_lost(None)


async def test_one_that_could_not_begin_is_over() -> None:
    server = GuardedServer(_answer, PolicyStore(POLICIES), SystemClock())
    connection = server.connection()
    before = connection.open
    connection.connection_lost(OSError(errno.EINVAL, "Invalid argument"))
    assert (before, connection.open, connection.expecting) == (True, False, False)
