"""Text that goes out while its reader sleeps: only where nothing is in its way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from mlxd.core.events import Burst, TextDelta
from mlxd.core.story import untold
from mlxd.policy.load import load
from mlxd.server.edge import STORY
from mlxd.server.stream import Stream
from mlxd.server.told import Told
from tests.support.virtual_time import VirtualLoop

BEAT = b"beat\n"


class Client:
    """What it is given, and how that may go wrong."""

    def __init__(self) -> None:
        self.taken = b""
        self.waiting = 0
        """Bytes that it has not read."""
        self.prepared = True
        self.closing = False
        self.aborted = False
        self.reset = False
        self.drained: asyncio.Future[None] | None = None

    async def write(self, piece: bytes) -> None:
        if self.reset:
            raise ConnectionResetError
        self.taken += piece
        if self.drained is not None:
            await self.drained

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


class Scene:
    def __init__(self, loop: VirtualLoop) -> None:
        self.client = Client()
        self.encoder = Encoder()
        encoder: Any = self.encoder
        call: Any = SimpleNamespace(id="a", requests=(), more=())
        self.told = Told(call, encoder, grown=lambda more: None)
        request: Any = Request({STORY: untold()})
        request.transport = self.client
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
        return self.told.behind(0) or b""


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
    assert scene.client.taken == b""


WAYS: dict[str, Callable[[Scene], None]] = {
    "unbegun": lambda scene: setattr(scene.client, "prepared", False),
    "owed": lambda scene: setattr(scene.told, "owed", b"before"),
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


def test_a_write_that_would_wait_for_its_client_has_written(
    loop: VirtualLoop, scene: Scene
) -> None:
    scene.client.drained = loop.create_future()
    assert scene.push("a")
    assert scene.client.taken == b"a"


def test_a_client_that_leaves_meanwhile_is_owed_what_was_told(scene: Scene) -> None:
    scene.client.reset = True
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
    assert scene.client.taken == b""


def test_it_is_a_sign_of_life(loop: VirtualLoop, scene: Scene) -> None:
    due = float(scene.stream._policies.timeouts.first_byte)
    loop.advance(due - 1)
    scene.push()
    loop.advance(due - 1)
    assert scene.stream._due() is None
    loop.advance(1)
    assert scene.stream._due() == BEAT
