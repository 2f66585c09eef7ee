"""The worker's end of the socket: what is too long for a message is one request's end alone."""

from __future__ import annotations

from typing import Any

import pytest

from mlxd.ipc import messages
from mlxd.ipc.messages import Echoed, Ended, FrameReader, Output, Refused, Taken, Text, decode_up
from mlxd.worker.link import Link


class Wire:
    def __init__(self) -> None:
        self.sent = b""

    def sendall(self, data: bytes) -> None:
        self.sent += data


def test_a_piece_that_is_too_long_ends_its_request_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(messages, "MAX_FRAME_BYTES", 200)
    wire: Any = Wire()
    ended = Ended(2, "stop", 1, 1, 0, 0.0, 0.0)
    taken = [Taken(1, [7])]
    link = Link(wire)
    link.send(Output(3, [Text(1, "a"), Echoed(2, "x" * 200), ended], taken=taken))
    heard = [decode_up(frame) for frame in FrameReader().feed(wire.sent)]
    assert heard == [
        Output(3, [Text(1, "a")]),
        Refused(2, "invalid_request", "what it asks to be told is too long"),
        Output(3, [ended]),
        Output(3, [], taken=taken),
    ]
