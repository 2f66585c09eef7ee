"""Text that goes out while its reader sleeps: only where nothing is in its way."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
import uvloop
from aiohttp import web

from mlxd.control.dispatch import Asker
from mlxd.core.caller import Caller
from mlxd.core.errors import WorkerCrashed
from mlxd.core.events import Burst, TextDelta
from mlxd.core.story import untold
from mlxd.dialects.base import NDJSON
from mlxd.policy.load import load
from mlxd.server.edge import STORY
from mlxd.server.stream import Stream
from mlxd.server.told import Told
from mlxd.server.told_records import Owed
from tests.support.owed import whole
from tests.support.virtual_time import VirtualLoop

BEAT = b"beat\n"


class Client:
    """What it is given, and how that may go wrong."""

    def __init__(self) -> None:
        self.taken = b""
        self.chunks: list[bytes] = []
        self.waiting = 0
        """Bytes that it has not read."""
        self.prepared = True
        self.closing = False
        self.aborted = False
        self.defect: Exception | None = None
        self.waits = False
        self.room: asyncio.Future[None] | None = None
        """What a write waits for that may wait."""

    async def write(self, piece: bytes, *, drain: bool = True) -> None:
        if self.defect is not None:
            raise self.defect
        self.taken += piece
        self.chunks.append(piece)
        if drain and self.room is not None:
            await self.room
        elif drain or self.waits:
            await asyncio.sleep(0)

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def is_closing(self) -> bool:
        return self.closing

    def abort(self) -> None:
        self.aborted = True


class Encoder:
    """Text as it is, unless something is wrong with it."""

    def __init__(self) -> None:
        self.defect: Exception | None = None
        self.fed = 0

    def feed(self, burst: Burst, now: float, choice: int = 0) -> bytes:
        self.fed += 1
        if self.defect is not None:
            raise self.defect
        return "".join(e.text for e in burst if isinstance(e, TextDelta)).encode()


class Request(dict[Any, Any]):
    transport: Any
    writer: Any


class Scene:
    def __init__(self, loop: VirtualLoop) -> None:
        self.client = Client()
        self.encoder = Encoder()
        encoder: Any = self.encoder
        call: Any = SimpleNamespace(id="a", requests=(), more=())
        self.told = Told(call, encoder, grown=lambda more: None)
        request: Any = Request({STORY: untold()})
        request.transport = request.writer = self.client
        clock = SimpleNamespace(monotonic=loop.monotonic, wall=lambda: 0.0)
        parts: Any = SimpleNamespace(clock=clock)
        codec: Any = SimpleNamespace(content_type="text/plain", heartbeat=BEAT)
        self.stream: Any = Stream(
            parts, codec, self.told, request, load(None), call=call, encoder=encoder
        )
        response: Any = self.client
        self.stream._response = response

    def push(self, text: str = "x") -> bool:
        pushed: bool = self.stream._push([TextDelta(text)])
        return pushed

    @property
    def kept(self) -> bytes:
        self.told.settle()
        return whole(self.told.behind(0))


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    made = VirtualLoop()
    yield made
    made.close()


@pytest.fixture
def scene(loop: VirtualLoop) -> Scene:
    return Scene(loop)


def test_it_is_told_and_written_at_once(scene: Scene) -> None:
    assert scene.push("a")
    assert scene.push("b")
    assert scene.client.taken == scene.kept == b"ab"


def test_what_makes_no_record_is_taken_all_the_same(scene: Scene) -> None:
    assert scene.push("")
    assert scene.client.chunks == []


def test_events_of_one_burst_are_one_chunk(scene: Scene) -> None:
    assert scene.push("a\n\nb\n\n")
    assert scene.client.chunks == [b"a\n\nb\n\n"]


LINES = [b'{"response":"a"}\n', b'{"done":true}\n']


def test_each_line_is_a_chunk_of_its_own(scene: Scene) -> None:
    """A client that takes a read for an object meets no second one behind it."""
    scene.stream._codec.content_type = NDJSON
    assert scene.push(b"".join(LINES).decode())
    assert scene.client.chunks == LINES


@pytest.mark.parametrize("waiting", [0, 20_000])
def test_each_line_is_a_chunk_also_of_what_its_reader_writes(
    loop: VirtualLoop, scene: Scene, waiting: int
) -> None:
    scene.stream._codec.content_type = NDJSON
    scene.client.waiting = waiting
    scene.told.owed = Owed(LINES[0])
    loop.run(scene.stream._write(b"".join(LINES)))
    loop.run(scene.stream._write(b"".join(LINES)))
    assert scene.client.chunks == [LINES[0], *LINES, *LINES]


@pytest.mark.parametrize("waiting", [0, 20_000])
def test_a_line_is_a_chunk_however_long_it_is(
    loop: VirtualLoop, scene: Scene, waiting: int
) -> None:
    """Such as the last one of /api/generate, whose `context` has every token."""
    scene.stream._codec.content_type = NDJSON
    scene.client.waiting = waiting
    lines = [LINES[0], b'{"context":[%b0]}\n' % (b"12345," * 30_000), LINES[1]]
    loop.run(scene.stream._write(b"".join(lines)))
    assert scene.client.chunks == lines


def test_no_line_waits_for_room_before_the_last(loop: VirtualLoop, scene: Scene) -> None:
    """Or one who gives up meanwhile would leave the rest unwritten, though it was told."""
    scene.stream._codec.content_type = NDJSON
    scene.client.room = loop.create_future()
    writing = loop.create_task(scene.stream._write(b"".join(LINES)))
    loop.settle()
    writing.cancel()
    loop.settle()
    assert scene.client.chunks == LINES


WAYS: dict[str, Callable[[Scene], None]] = {
    "unbegun": lambda scene: setattr(scene.client, "prepared", False),
    "owed": lambda scene: setattr(scene.told, "owed", Owed(b"before")),
    "torn": lambda scene: setattr(scene.stream, "_torn", True),
    "full": lambda scene: setattr(scene.client, "waiting", 16385),
    "closing": lambda scene: setattr(scene.client, "closing", True),
    "gone": lambda scene: setattr(scene.stream._request, "transport", None),
}


@pytest.mark.parametrize("way", WAYS)
def test_whatever_is_in_its_way_leaves_it_to_the_reader(scene: Scene, way: str) -> None:
    """And nothing has been done with it."""
    WAYS[way](scene)
    assert not scene.push()
    assert (scene.encoder.fed, scene.client.taken, scene.kept) == (0, b"", b"")


def test_nothing_gets_into_the_middle_of_what_is_being_written(
    loop: VirtualLoop, scene: Scene
) -> None:
    async def held() -> bool:
        async with scene.stream._writing:
            return scene.push()

    assert not loop.run(held())
    assert scene.push()


def test_a_client_that_leaves_meanwhile_is_owed_what_was_told(scene: Scene) -> None:
    scene.client.defect = ConnectionResetError()
    assert scene.push("a"), "it is not told again"
    assert scene.client.aborted
    assert scene.kept == b"a"


def test_a_defect_is_the_readers_and_nobody_elses(loop: VirtualLoop, scene: Scene) -> None:
    defect = scene.encoder.defect = ZeroDivisionError("in the encoder")
    assert not scene.push()
    scene.encoder.defect = None
    assert not scene.push(), "nothing is told behind what is not"
    with pytest.raises(ZeroDivisionError) as raised:
        loop.run(scene.stream._send([TextDelta("x")], 0))
    assert raised.value is defect
    assert scene.stream._failure is None, "which would hold itself"
    assert scene.client.taken == b""
    assert scene.told.uncertain, "nobody goes on with what its encoder is in the middle of"


@pytest.mark.parametrize("how", ["raises", "waits"])
def test_a_write_that_fails_is_the_readers_too_and_not_told_again(
    loop: VirtualLoop, scene: Scene, how: str
) -> None:
    if how == "raises":
        scene.client.defect = ZeroDivisionError("in the writer")
    else:
        scene.client.waits = True
    assert scene.push("a")
    assert scene.kept == b"a"
    assert not scene.push("b")
    with pytest.raises(ZeroDivisionError if how == "raises" else RuntimeError):
        loop.run(scene.stream._send([TextDelta("b")], 0))


def test_it_is_a_sign_of_life(loop: VirtualLoop, scene: Scene) -> None:
    due = float(scene.stream._policies.timeouts.first_byte)
    loop.advance(due - 1)
    scene.push()
    loop.advance(due - 1)
    assert scene.stream._due() is None
    loop.advance(1)
    assert scene.stream._due() == BEAT


async def _fails(asker: Any) -> None:
    """A generation that ends by an error, with nothing more to tell."""
    asker.push([TextDelta("a")])
    raise WorkerCrashed("it is gone")


def test_a_failure_that_no_later_burst_raises_is_logged(
    loop: VirtualLoop,
    scene: Scene,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    scene.client.defect = ZeroDivisionError("in the writer")
    monkeypatch.setattr(scene.stream, "_send_records", _fails)
    asker = Asker(Caller("me"), load(None), lambda _: None, untold())
    with pytest.raises(WorkerCrashed):
        loop.run(scene.stream.run(asker))
    (told,) = [record for record in caplog.records if record.exc_info]
    assert told.exc_info is not None
    assert told.exc_info[0] is ZeroDivisionError


def test_a_word_that_waits_for_room_is_not_given_up(loop: VirtualLoop, scene: Scene) -> None:
    """Or whoever waits next for the same would be cancelled."""
    room = scene.client.room = loop.create_future()
    loop.do(scene.stream._arm)
    loop.advance(float(scene.stream._policies.timeouts.first_byte) + 1)
    assert scene.client.taken == BEAT
    loop.do(scene.stream._disarm)
    loop.settle()
    assert not room.cancelled()
    loop.do(room.set_result, None)
    loop.settle()
    assert scene.stream._saying.done()
    assert not scene.stream._saying.cancelled()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_client_that_stalls_and_goes_on_gets_all_of_it(run: Callable[[Any], bytes]) -> None:
    """A real one: its connection is paused, and pushed to long before it is not any more."""
    taken = run(_slowly_read())
    assert b"".join(_chunks(taken)) == b"".join(RECORDS)


RECORDS = [b"%d " % number * 500 for number in range(800)]


def _chunks(taken: bytes) -> Iterator[bytes]:
    rest = taken.partition(b"\r\n\r\n")[2]
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        yield rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]


async def _slowly_read() -> bytes:
    loop = asyncio.get_running_loop()
    stalled = asyncio.Event()

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        wire: Any = request.transport
        wire.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        stream = _stream_to(request, loop)
        await stream._response.prepare(request)
        records = iter(RECORDS)
        while not request.protocol.writing_paused:
            await stream._write(next(records))
        stalled.set()
        for record in records:
            while not stream._push([TextDelta(record.decode())]):  # noqa: ASYNC110
                await asyncio.sleep(0)
        await stream._response.write_eof()
        return cast("web.StreamResponse", stream._response)

    served = await loop.create_server(web.Server(answer), "127.0.0.1", 0)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await loop.sock_connect(client, served.sockets[0].getsockname())
        await loop.sock_sendall(client, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        taken = b""
        async with asyncio.timeout(10):
            await stalled.wait()
            while piece := await loop.sock_recv(client, 2048):
                taken += piece
    served.close()
    return taken


def _stream_to(request: web.BaseRequest, loop: asyncio.AbstractEventLoop) -> Any:
    request[STORY] = untold()
    encoder: Any = Encoder()
    call: Any = SimpleNamespace(id="a", requests=(), more=())
    clock = SimpleNamespace(monotonic=loop.time, wall=lambda: 0.0)
    parts: Any = SimpleNamespace(clock=clock)
    codec: Any = SimpleNamespace(content_type="text/plain", heartbeat=BEAT)
    told = Told(call, encoder)
    return Stream(parts, codec, told, request, load(None), call=call, encoder=encoder)
