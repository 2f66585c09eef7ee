"""The look at every connection: who takes nothing is cut, and nothing stops the looking."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from mlxd.core.clock import ManualClock
from mlxd.policy.load import load
from mlxd.policy.store import PolicyStore
from mlxd.server import connections
from mlxd.server.connection import Connection
from mlxd.server.connections import GuardedServer
from tests.support.daemon import write_policies

LIMIT = 2.0


async def _answer(_: web.BaseRequest) -> web.StreamResponse:
    return web.Response()


class Wire:
    """A transport whose client takes what a test says."""

    def __init__(self) -> None:
        self.waiting = 50_000
        self.queued = 90_000
        self.acknowledged: int | None = None
        self.aborted = False

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def get_extra_info(self, _name: str) -> Any:
        return self

    family = None

    def abort(self) -> None:
        self.aborted = True


class Bench:
    def __init__(self, folder: Path) -> None:
        policies = load(write_policies(folder, {"timeouts": f"client_write: {LIMIT:g}s\n"}))
        self.clock = ManualClock()
        self.store = PolicyStore(policies)
        self.server = self.made(limited=True)

    def made(self, *, limited: bool) -> GuardedServer:
        return GuardedServer(_answer, self.store, self.clock, limited=limited)

    def connection(self, wire: Wire, server: GuardedServer | None = None) -> Connection:
        server = server or self.server
        connection = server.connection()
        connection._wire = wire  # type: ignore[assignment]
        server._connections[connection] = wire  # type: ignore[assignment]
        return connection


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr("mlxd.server.connection.queued", lambda wire: wire.queued)
    monkeypatch.setattr("mlxd.server.connection.acknowledged", lambda wire: wire.acknowledged)
    bench = Bench(tmp_path)
    yield bench
    bench.server._connections.clear()
    await bench.server.shutdown()


async def test_while_nobody_is_there_nobody_looks(bench: Bench) -> None:
    def looks() -> bool:
        return bench.server._sweeper is not None

    assert not looks()
    bench.connection(Wire())
    bench.server.watch()
    bench.server._sweep()
    assert looks()
    bench.server._connections.clear()
    bench.server._sweep()
    assert not looks()


async def test_who_takes_nothing_is_cut(bench: Bench) -> None:
    wire = Wire()
    bench.connection(wire)
    for _ in range(3):
        bench.server._sweep()
        bench.clock.advance(LIMIT / 2)
    bench.server._sweep()
    assert wire.aborted


async def test_who_takes_only_a_little_of_what_the_kernel_has_is_not_cut(bench: Bench) -> None:
    wire = Wire()
    bench.connection(wire)
    for _ in range(40):
        bench.server._sweep()
        bench.clock.advance(LIMIT / 2)
        wire.queued -= 10
    assert not wire.aborted


async def test_one_that_is_gone_is_cut_though_the_kernel_has_taken_all(bench: Bench) -> None:
    wire = Wire()
    wire.waiting, wire.acknowledged = 0, 5
    bench.connection(wire)
    for _ in range(3):
        bench.server._sweep()
        bench.clock.advance(LIMIT / 2)
    bench.server._sweep()
    assert wire.aborted


@pytest.mark.parametrize(("each", "cut"), [(100, True), (600, False)])
async def test_who_hardly_takes_anything_is_cut(bench: Bench, each: int, cut: bool) -> None:
    """1 KiB within the limit is enough for a slow phone, and too much for who only means to hold
    the connection.
    """
    wire = Wire()
    wire.acknowledged = 0
    bench.connection(wire)
    for _ in range(20):
        bench.server._sweep()
        bench.clock.advance(LIMIT / 2)
        wire.acknowledged += each
    assert wire.aborted is cut


async def test_what_is_always_on_its_way_is_nobodys_silence(bench: Bench) -> None:
    steady, unknown = Wire(), Wire()
    steady.acknowledged = 0
    unknown.waiting = 0
    bench.connection(steady)
    bench.connection(unknown)
    for sent in range(20):
        steady.acknowledged = 2000 * sent
        bench.server._sweep()
        bench.clock.advance(LIMIT / 2)
    assert not steady.aborted
    assert not unknown.aborted


async def test_of_whom_nothing_was_written_the_system_is_not_asked_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless a request has come since, or is about to be served."""
    asked: list[Wire] = []

    def ask(wire: Wire) -> int:
        asked.append(wire)
        return wire.queued

    monkeypatch.setattr("mlxd.server.connection.queued", ask)
    wire = Wire()
    wire.waiting = wire.queued = 0
    connection = bench.connection(wire)

    def times(sweeps: int) -> int:
        asked.clear()
        for _ in range(sweeps):
            bench.server._sweep()
        return len(asked)

    connection._request_count = 1
    assert times(3) == 3
    connection._waiter = asyncio.get_running_loop().create_future()
    assert times(3) == 1
    connection._request_count = 2
    connection._waiter.set_result(None)
    assert times(3) == 3


async def test_between_many_others_have_their_turn(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[Connection] = []
    monkeypatch.setattr(Connection, "end_if_unread", lambda self, *_: looked.append(self))
    made = [bench.connection(Wire()) for _ in range(100)]
    bench.server._sweep()
    turns = 0
    while len(looked) < len(made):
        assert len(looked) <= 16 * (turns + 1)
        await asyncio.sleep(0)
        turns += 1
    assert looked == made
    assert turns > 4


async def test_one_connection_that_cannot_be_looked_at_ends_no_sweep(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = bench.connection(Wire()), bench.connection(Wire())
    seen: list[Connection] = []

    def look(self: Connection, _now: float, _limit: float) -> None:
        seen.append(self)
        raise ZeroDivisionError

    monkeypatch.setattr(Connection, "end_if_unread", look)
    monkeypatch.setattr(connections, "SWEEP_SECONDS", 0.01)
    bench.server._sweep()
    assert seen == [first, second]
    async with asyncio.timeout(20):
        while len(seen) < 6:  # noqa: ASYNC110 - the sweep tells nobody
            await asyncio.sleep(0.005)
    assert "cannot be swept" in caplog.text


async def test_a_sweep_that_fails_as_a_whole_is_made_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    times: list[float] = []
    bench.connection(Wire())

    def broken(_: GuardedServer) -> list[Connection]:
        times.append(0.0)
        raise ZeroDivisionError

    monkeypatch.setattr(GuardedServer, "connections", property(broken))
    monkeypatch.setattr(connections, "SWEEP_SECONDS", 0.01)
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    with pytest.raises(ZeroDivisionError):
        bench.server._sweep()
    async with asyncio.timeout(20):
        while len(times) < 3:  # noqa: ASYNC110 - the sweep tells nobody
            await asyncio.sleep(0.005)
    monkeypatch.undo()


async def test_no_edit_locks_the_owner_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float] = []
    monkeypatch.setattr(Connection, "end_if_unread", lambda _s, _n, limit: limits.append(limit))
    admin = bench.made(limited=False)
    bench.connection(Wire(), admin)
    admin._sweep()
    assert limits == [float(load().timeouts.client_write)] != [LIMIT]
    admin._connections.clear()
    await admin.shutdown()
