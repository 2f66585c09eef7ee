"""What a stream says while it waits in the queue, and what it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlxd.control.queue_view import Waiting
from mlxd.core.story import untold
from mlxd.dialects.base import EVENT_STREAM
from mlxd.policy.load import load
from mlxd.server.edge import STORY
from mlxd.server.stream import Stream
from mlxd.server.told import Told
from tests.support.daemon import write_policies
from tests.support.virtual_time import VirtualLoop

HEARTBEAT = b": waiting\n\n"
NDJSON = "application/x-ndjson"


class Client:
    """Takes at once what it is given; its status line goes out with the first of it."""

    def __init__(self) -> None:
        self.prepared = False
        self.pieces: list[bytes] = []

    async def write(self, piece: bytes) -> None:
        self.pieces.append(piece)

    def get_write_buffer_size(self) -> int:
        return 0


class Request(dict[Any, Any]):
    """With what is known of it."""


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    made = VirtualLoop()
    yield made
    made.close()


Begin = Callable[..., tuple[Stream, Client]]


@pytest.fixture
def begin(loop: VirtualLoop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Begin:
    """A stream that nothing is written to yet, its timer armed."""

    async def prepared(stream: Any) -> None:
        stream._response.prepared = True

    def made(content_type: str = EVENT_STREAM, heartbeat: bytes = HEARTBEAT) -> tuple[Any, Client]:
        client = Client()
        policies = load(write_policies(tmp_path, {"timeouts": "first_byte: 10s\n"}))
        codec: Any = SimpleNamespace(content_type=content_type, heartbeat=heartbeat)
        request: Any = Request({STORY: untold()})
        request.transport = client
        residency = SimpleNamespace(progress_of=lambda model: None)
        parts: Any = SimpleNamespace(clock=loop, residency=residency)
        call: Any = SimpleNamespace(id="a", requests=())
        encoder: Any = None
        told = Told(call, SimpleNamespace())
        stream: Any = Stream(parts, codec, told, request, policies, call=call, encoder=encoder)
        stream._response = client
        monkeypatch.setattr(Stream, "_prepare", prepared)
        loop.do(stream._arm)
        return stream, client

    return made


def test_nothing_is_said_before_the_first_byte_is_due(loop: VirtualLoop, begin: Begin) -> None:
    stream, client = begin()
    stream.wait(Waiting(3, 11.2))
    loop.advance(9.5)
    assert not client.prepared
    loop.advance(1)
    assert client.pieces == [b": queued position=3 expected_wait=2\n\n"]


def test_what_is_over_of_the_wait_is_not_told_again(loop: VirtualLoop, begin: Begin) -> None:
    stream, client = begin()
    stream.wait(Waiting(2, 24.9))
    loop.advance(35.5)
    assert client.pieces == [
        f": queued position=2 expected_wait={seconds}\n\n".encode() for seconds in (15, 5, 1)
    ]


def test_a_change_is_told_once_a_second_and_what_does_not_change_is_not(
    loop: VirtualLoop, begin: Begin
) -> None:
    stream, client = begin()
    stream.wait(Waiting(9, 9.0))
    loop.advance(10.1)
    for position in (8, 7, 6):
        stream.wait(Waiting(position, 9.0))
        loop.advance(0.2)
    loop.advance(5)
    assert client.pieces[1:] == [b": queued position=6 expected_wait=9\n\n"]
    loop.advance(10)
    assert len(client.pieces) == 3, "a sign of life, as for everybody"


def test_the_further_back_the_more_rarely(loop: VirtualLoop, begin: Begin) -> None:
    stream, client = begin()
    stream.wait(Waiting(60, 60.0))
    loop.advance(10.1)
    for position in range(59, 49, -1):
        stream.wait(Waiting(position, 60.0))
        loop.advance(0.58)
    assert len(client.pieces) == 1
    loop.advance(0.3)
    assert client.pieces[1:] == [b": queued position=50 expected_wait=60\n\n"]


def test_who_has_a_slot_is_told_of_no_queue_any_more(loop: VirtualLoop, begin: Begin) -> None:
    stream, client = begin()
    stream.wait(Waiting(1, 1.0))
    loop.advance(10.1)
    stream._request[STORY].admitted = 1.0
    loop.advance(21)
    assert client.pieces[1:] == [HEARTBEAT, HEARTBEAT]


def test_ndjson_has_no_comments_and_no_blank_lines(loop: VirtualLoop, begin: Begin) -> None:
    stream, client = begin(NDJSON, b"")
    stream.wait(Waiting(4, 4.0))
    loop.advance(10.1)
    assert client.prepared
    stream.wait(Waiting(3, 3.0))
    loop.advance(30)
    assert b"".join(client.pieces) == b""


def test_a_stream_that_is_over_has_no_timer(loop: VirtualLoop, begin: Begin) -> None:
    stream, client = begin()
    stream.wait(Waiting(1, 1.0))
    loop.advance(10.1)
    stream._disarm()
    stream.wait(Waiting(2, 2.0))
    loop.advance(30)
    assert len(client.pieces) == 1
