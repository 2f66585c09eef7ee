"""The stream of events: alive when it has nothing to tell, and not for everybody at once."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from mlxd.server import events as stream
from mlxd.server.connection import Connection
from mlxd.server.events import EventStream
from mlxd.server.parts import State
from mlxd.telemetry.events import Events
from tests.support.virtual_time import VirtualLoop

BEAT = stream._HEARTBEAT_SECONDS


class Bench:
    def __init__(self) -> None:
        self.loop = VirtualLoop()
        self.events = Events(self.loop)
        self.written: list[bytes] = []
        self.state = State()
        self.protocol: Any = None
        parts: Any = SimpleNamespace(events=self.events, clock=self.loop, state=self.state)
        self.stream = EventStream(parts)

    async def write(self, data: bytes) -> None:
        self.written.append(data)

    def follow(self, *types: str) -> asyncio.Task[None]:
        async def work() -> None:
            with self.events.subscribe(None, frozenset(types)) as follower:
                request: Any = SimpleNamespace(protocol=self.protocol)
                response: Any = self
                await self.stream._follow(request, response, follower)

        task = self.loop.create_task(work())
        self.loop.settle()
        return task

    def end(self, task: asyncio.Task[None]) -> None:
        self.events.close()
        self.loop.run(task)
        self.loop.close()


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_one_who_is_told_nothing_hears_a_heartbeat_whatever_else_happens(bench: Bench) -> None:
    task = bench.follow("breaker")
    for _ in range(100):
        bench.loop.do(bench.events.record, "reject", "x")
        bench.loop.advance(BEAT / 10)
    assert 9 <= bench.written.count(stream._HEARTBEAT) <= 10
    bench.end(task)


def test_one_who_was_just_told_something_needs_none(bench: Bench) -> None:
    task = bench.follow()
    for _ in range(20):
        bench.loop.do(bench.events.record, "reject", "x")
        bench.loop.advance(BEAT * 0.9)
    assert stream._HEARTBEAT not in bench.written
    assert len(bench.written) == 20
    bench.end(task)


def _leaving() -> Connection:
    connection = object.__new__(Connection)
    connection.leaving = True
    return connection


def test_it_ends_with_its_address(bench: Bench) -> None:
    bench.protocol = _leaving()
    task = bench.follow()
    assert task.done()
    bench.end(task)


def test_of_a_drain_it_tells_all(bench: Bench) -> None:
    bench.protocol = _leaving()
    bench.state.draining = True
    task = bench.follow()
    bench.loop.do(bench.events.record, "drain", "stopping: requests did not finish in time")
    bench.loop.settle()
    assert not task.done()
    assert b"did not finish" in b"".join(bench.written)
    bench.end(task)
