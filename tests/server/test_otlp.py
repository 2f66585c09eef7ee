"""What counts as sent, by receivers that say strange things."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from mlxd.core.trace_context import TraceContext
from mlxd.server.otlp import opened
from mlxd.telemetry.spans import Span

SPAN = Span("x", TraceContext("a" * 32, "b" * 16, sampled=True), None, 1, 2, {})


@contextmanager
def saying(head: str) -> Iterator[str]:
    """The URL of one who answers each post with that, and then says a byte now and then."""
    over = threading.Event()

    def speak(asker: socket.socket) -> None:
        with asker, suppress(OSError):
            asker.recv(1 << 16)
            asker.sendall(f"HTTP/1.1 {head}\r\nContent-Length: 9999\r\n\r\n".encode())
            while not over.wait(0.1):
                asker.sendall(b".")

    def listen() -> None:
        while not over.is_set():
            with suppress(OSError):
                threading.Thread(target=speak, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=listen, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        over.set()


@pytest.mark.parametrize(
    ("head", "taken"),
    [
        ("200 OK", True),
        ("302 Found\r\nLocation: http://127.0.0.1:9/", False),
        ("307 Temporary Redirect\r\nLocation: /other", False),
        ("304 Not Modified", False),
        ("400 Bad Request", False),
    ],
)
def test_a_body_without_end_holds_nobody_and_only_a_success_counts(head: str, taken: bool) -> None:
    with saying(head) as url:
        exporter = opened(url, "mlxd")
        told: list[bool] = []
        thread = threading.Thread(target=lambda: told.append(exporter.export([SPAN])), daemon=True)
        thread.start()
        thread.join(30)
        exporter.close()
    assert told == [taken]
