import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from mlxd.core.clock import SystemClock
from mlxd.policy.load import load
from mlxd.server.generate import _Stream
from tests.support.daemon import write_policies

LIMIT = 0.2


class Client:
    """Takes each piece of its answer in `seconds`."""

    def __init__(self, seconds):
        self.seconds = seconds
        self.prepared = True
        self.pieces: list[int] = []
        self.aborted = False

    async def write(self, piece):
        self.pieces.append(len(piece))
        await asyncio.sleep(self.seconds)

    def get_write_buffer_size(self):
        return 0

    def abort(self):
        self.aborted = True


def stream_to(client, tmp_path):
    policies = load(write_policies(tmp_path, {"timeouts": f"client_write: {LIMIT * 1000:g}ms\n"}))
    codec: Any = SimpleNamespace(encoder=lambda call: None, content_type="text/plain")
    request: Any = SimpleNamespace(transport=client)
    parts: Any = SimpleNamespace(clock=SystemClock())
    stream = _Stream(parts, codec, SimpleNamespace(), request, policies)  # type: ignore[arg-type]
    stream._response = client
    return stream


async def test_a_large_answer_is_given_in_pieces_and_each_has_its_time(tmp_path):
    client = Client(LIMIT / 2)
    await stream_to(client, tmp_path)._write(bytes(250_000))
    assert sum(client.pieces) == 250_000
    assert max(client.pieces) <= 65536
    assert not client.aborted


async def test_a_client_that_needs_too_long_for_a_piece_is_cut(tmp_path):
    client = Client(60)
    with pytest.raises(ConnectionResetError):
        await stream_to(client, tmp_path)._write(bytes(250_000))
    assert client.aborted
    assert len(client.pieces) == 1
