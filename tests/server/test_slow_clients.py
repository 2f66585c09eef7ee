import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from mlxd.core.errors import Draining
from mlxd.core.story import untold
from mlxd.policy.load import load
from mlxd.server.edge import STORY
from mlxd.server.stream import Stream
from mlxd.server.told import Told
from tests.support.daemon import write_policies
from tests.support.virtual_time import VirtualLoop

HEARTBEAT = b": keep-alive\n\n"
FAILED = b"data: failed\n\n"
TIMES = "client_write: 30s\nfirst_byte: 10s\n"


class Client:
    """Takes each piece of its answer in `seconds`."""

    def __init__(self, seconds):
        self.seconds = seconds
        self.prepared = True
        self.pieces: list[bytes] = []
        self.aborted = False

    @property
    def taken(self):
        return b"".join(self.pieces)

    async def write(self, piece):
        self.pieces.append(bytes(piece))
        await asyncio.sleep(self.seconds)

    async def write_eof(self):
        pass

    def get_write_buffer_size(self):
        return 0

    def abort(self):
        self.aborted = True


class Request(dict[Any, Any]):
    """With what is known of it."""


@pytest.fixture
def loop():
    made = VirtualLoop()
    yield made
    made.close()


@pytest.fixture
def stream_to(loop, tmp_path):
    def made(client):
        policies = load(write_policies(tmp_path, {"timeouts": TIMES}))
        encoder: Any = SimpleNamespace(fail=lambda error: FAILED)
        codec: Any = SimpleNamespace(content_type="text/plain", heartbeat=HEARTBEAT)
        request: Any = Request({STORY: untold()})
        request.transport = client
        parts: Any = SimpleNamespace(clock=loop)
        call: Any = SimpleNamespace(id="a", requests=())
        told = Told(call, encoder)
        stream = Stream(parts, codec, told, request, policies, call=call, encoder=encoder)
        stream._response = client
        return stream

    return made


def test_a_large_answer_is_given_in_pieces(loop, stream_to):
    client = Client(1)
    loop.run(stream_to(client)._write(bytes(250_000)))
    assert client.taken == bytes(250_000)
    assert max(map(len, client.pieces)) <= 65536


def test_a_client_that_takes_slowly_but_steadily_is_not_cut(loop, stream_to):
    """The sweep over connections cuts one that takes nothing."""
    client = Client(600)
    loop.run(stream_to(client)._write(bytes(250_000)))
    assert client.taken == bytes(250_000)
    assert not client.aborted


def test_no_heartbeat_gets_into_the_middle_of_a_record(loop, stream_to):
    client = Client(15)
    stream = stream_to(client)
    loop.call_soon(stream._arm)
    loop.settle()
    record = b"x" * 250_000
    loop.run(stream._write(record))
    assert client.taken == record
    loop.advance(9)
    assert client.taken == record, "it has only just been given something"
    loop.advance(2)
    assert client.taken == record + HEARTBEAT
    stream._disarm()
    loop.advance(15)


def test_the_last_record_waits_for_the_end_of_the_one_before(loop, stream_to):
    client = Client(1)
    stream = stream_to(client)
    record = b"x" * 250_000
    writing = loop.create_task(stream._write(record))
    loop.settle()
    loop.run(stream.fail(Draining("the daemon is stopping")))
    assert client.taken == record + FAILED
    assert writing.done()


def test_after_a_record_that_was_given_up_nothing_is_said(loop, stream_to):
    client = Client(1)
    stream = stream_to(client)
    writing = loop.create_task(stream._write(b"x" * 250_000))
    loop.settle()
    writing.cancel()
    loop.settle()
    with pytest.raises(ConnectionResetError):
        loop.run(stream.fail(Draining("the daemon is stopping")))
    assert client.aborted
    assert FAILED not in client.taken


def test_a_record_that_is_all_given_may_be_followed_by_the_last(loop, stream_to):
    client = Client(1)
    stream = stream_to(client)
    writing = loop.create_task(stream._write(b"x" * 60_000))
    loop.settle()
    writing.cancel()
    loop.settle()
    loop.run(stream.fail(Draining("the daemon is stopping")))
    assert client.taken.endswith(FAILED)
