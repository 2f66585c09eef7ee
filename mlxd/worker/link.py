"""The worker's end of the socket. When the other end is gone, so is this process."""

from __future__ import annotations

import os
import socket
import threading
from typing import NoReturn

from msgspec.structs import replace

from mlxd.ipc.messages import FrameReader, Output, Refused, TooLong, Up, encode

CHUNK = 1 << 18


class Link:
    """Frames in, for one thread; messages out, from any."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._reader = FrameReader()
        self._sending = threading.Lock()

    def send(self, message: Up) -> None:
        """Waits while the daemon does not read: there is no use in generating ahead of it.

        What is too long to be told ends its request alone.
        """
        try:
            frames = [encode(message)]
        except TooLong:
            if not isinstance(message, Output):
                raise
            frames = _one_by_one(message)
        try:
            with self._sending:
                for frame in frames:
                    self._socket.sendall(frame)
        except OSError:
            _daemon_is_gone()

    def receive(self) -> list[bytes]:
        """Waits for bytes, and returns the frames they complete. Raises BrokenFrame."""
        try:
            data = self._socket.recv(CHUNK)
        except OSError:
            data = b""
        if not data:
            _daemon_is_gone()
        return self._reader.feed(data)


def _one_by_one(output: Output) -> list[bytes]:
    """The rest last: its tokens have made the pieces known. Whatever is said of a request behind
    its refusal the daemon passes over.
    """
    frames = []
    for piece in output.pieces:
        try:
            frames.append(encode(Output(output.step, [piece])))
        except TooLong:
            refused = Refused(piece.id, "invalid_request", "what it asks to be told is too long")
            frames.append(encode(refused))
    return [*frames, encode(replace(output, pieces=[]))]


def _daemon_is_gone() -> NoReturn:
    """At once and from any thread: the main one may be deep inside MLX."""
    os._exit(0)
