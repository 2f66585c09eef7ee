"""The listener of a daemon that stops: who waits, who is answered, and how the others are told."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web

from mlxd.core.clock import SystemClock
from mlxd.policy.load import Override, load
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.store import PolicyStore
from mlxd.server.connection import Connection
from mlxd.server.connections import GuardedServer
from mlxd.server.listener import Door, Listener
from mlxd.server.port import Bound
from tests.support.daemon import free_port

LIVEZ = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def kept() -> Iterator[list[socket.socket]]:
    """A manager's own two."""
    with ExitStack() as stack:
        yield [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]


@asynccontextmanager
async def serving(kept: list[socket.socket], name: str = "one") -> AsyncIterator[Listener]:
    """One daemon's listener, on its copies; each answer says whose it is, and whether the
    connection is to end.
    """

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        protocol = request.protocol
        assert isinstance(protocol, Connection)
        return web.Response(text=f"{name}, leaving" if protocol.leaving else name)

    policies = load(None, [Override("server.http.header_timeout", "60s", "a test")])
    server = GuardedServer(answer, PolicyStore(policies), SystemClock())
    listener = Listener(server, SystemClock(), lambda *_: None)
    copies = tuple(sock.dup() for sock in kept)
    listener.open(Bound(copies, shared=True), policies.server.listen)
    try:
        yield listener
    finally:
        await listener.close()


async def received(client: socket.socket) -> bytes:
    return await asyncio.to_thread(client.recv, 4096)


def connected(sock: socket.socket) -> socket.socket:
    client = socket.create_connection(sock.getsockname(), timeout=20)
    client.sendall(LIVEZ)
    return client


async def test_who_waits_at_a_shared_socket_is_answered_by_the_next_daemon(
    kept: list[socket.socket],
) -> None:
    async with serving(kept) as listener:
        for sock in kept:
            with connected(sock) as client:
                assert (await received(client)).endswith(b"one")
        with connected(kept[1]) as early:  # nobody has looked yet
            await listener.stop_accepting()
            assert listener.present is None
            with connected(kept[0]) as late:
                await listener.close()
                async with serving(kept, "the next") as following:
                    for client in (early, late):
                        assert (await received(client)).endswith(b"the next")
                    assert len(following.present_addresses) == 2


async def test_it_says_how_many_came_and_how_often_nobody_was_left(
    kept: list[socket.socket],
) -> None:
    async with serving(kept) as listener:
        with ExitStack() as stack:
            clients = [stack.enter_context(connected(kept[0])) for _ in range(3)]
            for client in clients:
                await received(client)
        assert listener.taken == (3, 1)
    assert listener.taken == (0, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="only there a listener says its backlog")
async def test_their_backlogs_follow_an_edit(kept: list[socket.socket]) -> None:
    old, new = (
        load(None, [Override("server.listen.backlog", text, "a test")]) for text in ("512", "9")
    )
    async with serving(kept) as listener:
        assert list(map(backlog, kept)) == [512, 512]
        (await listener.prepare(old, new)).commit()
        assert list(map(backlog, kept)) == [9, 9]


@pytest.mark.skipif(sys.platform != "linux", reason="only there a listener says its backlog")
async def test_an_address_that_lingers_comes_back_with_the_backlog_of_now(
    kept: list[socket.socket],
) -> None:
    def at(address: tuple[str, int], text: str) -> PolicySet:
        said = zip(("host", "port", "backlog"), (*map(str, address), text), strict=True)
        return load(None, [Override(f"server.listen.{key}", one, "a test") for key, one in said])

    async with serving(kept) as listener:
        here = at(listener._doors[0].address, "512")
        there = at(("127.0.0.1", free_port()), "512")
        (await listener.prepare(here, there)).commit()
        (await listener.prepare(there, at(listener._doors[0].address, "9"))).commit()
        assert backlog(kept[0]) == 9


def backlog(sock: socket.socket) -> int:
    """What its `tcpi_sacked` means while it listens."""
    (length,) = struct.unpack_from(
        "I", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32), 28
    )
    return int(length)


async def test_who_has_just_come_when_it_stops_is_awaited_and_told_to_go(
    kept: list[socket.socket],
) -> None:
    """One that was accepted in the very turn."""
    async with serving(kept) as listener:
        with socket.create_connection(kept[0].getsockname(), timeout=20) as client:
            listener._doors[0].acceptor._accept()  # type: ignore[union-attr]
            await listener.stop_accepting()
            assert listener.expecting == 1
            client.sendall(LIVEZ)
            assert (await received(client)).endswith(b"one, leaving")


async def test_who_has_just_been_answered_may_ask_again(
    kept: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlxd.server.connection._NEXT_SECONDS", 60.0)
    async with serving(kept) as listener:
        with connected(kept[0]) as known:
            assert (await received(known)).endswith(b"one")
            await listener.stop_accepting()
            assert await until(lambda: listener.expecting == 1)
            known.sendall(LIVEZ)
            assert (await received(known)).endswith(b"one, leaving")


async def test_who_says_nothing_for_long_is_not_awaited(
    kept: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlxd.server.connection._COMING_SECONDS", 0.1)
    monkeypatch.setattr("mlxd.server.connection._NEXT_SECONDS", 0.1)
    async with serving(kept) as listener:
        with connected(kept[0]) as known, socket.create_connection(kept[1].getsockname()):
            assert (await received(known)).endswith(b"one")
            assert await until(lambda: listener.expecting == 0)


async def until(fact: Callable[[], bool]) -> bool:
    for _ in range(2000):
        if fact():
            return True
        await asyncio.sleep(0.01)
    return False


async def test_who_is_idle_when_it_closes_is_told_before_and_never_reset(
    kept: list[socket.socket],
) -> None:
    async with serving(kept) as listener:
        with connected(kept[0]) as client:
            await received(client)
            await asyncio.sleep(0.15)
            assert not listener.expecting
            client.sendall(LIVEZ)  # nobody reads that
            await listener.close()
            assert await received(client) == b""


def test_connections_that_are_over_are_forgotten_in_time() -> None:
    door = Door("localhost", cast("Any", None))
    for number in range(1000):
        door.take(cast("Any", SimpleNamespace(open=number % 100 == 0)))
        assert len(door.connections) <= 64
    assert sum(connection.open for connection in door.connections) == 10
