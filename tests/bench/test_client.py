"""The measuring client against a server that says what a test wants."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mlxd.bench.client import BadAnswer, TooLate, run_load
from mlxd.bench.contestants import Daemon

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(*records: object) -> bytes:
    text = b"".join(b"data: " + json.dumps(record).encode() + b"\n\n" for record in records)
    return f"{len(text):x}\r\n".encode() + text + b"\r\n"


def piece(text: str) -> dict[str, object]:
    return {"choices": [{"text": text}], "usage": None}


def usage(tokens: int) -> dict[str, object]:
    return {"choices": [], "usage": {"completion_tokens": tokens}}


WHOLE = HEAD + chunk(piece("a")) + chunk(piece(""), piece("b")) + chunk(usage(3)) + b"0\r\n\r\n"


@contextmanager
def answering(folder: Path, content: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """A socket whose clients all get `content`; what they asked."""
    path, asked = str(folder / "s"), list[bytes]()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            kept = []
            while True:
                try:
                    one, _ = listener.accept()
                except OSError:
                    break
                kept.append(one)
                asked.append(one.recv(65536))
                one.sendall(content)
            for one in kept:
                one.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield path, asked
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_times_are_those_of_text_and_spans_those_of_the_engine(tmp_path: Path) -> None:
    told: list[str] = []

    def spans(ids: object) -> list[float | None]:
        assert isinstance(ids, list)
        told.extend(ids)
        return [0.5, None]

    with answering(tmp_path, WHOLE) as (path, asked):
        answers = Daemon(path, "m", spans).run([[1, 2], [3]], 3, 10.0)
    assert [len(stream) for stream in answers.times] == [2, 2]
    assert answers.spans[0] == 0.5
    assert answers.spans[1] == answers.times[1][-1] - answers.times[1][0]
    bodies = [json.loads(one.split(b"\r\n\r\n", 1)[1]) for one in asked]
    assert sorted(body["prompt"] for body in bodies) == [[1, 2], [3]]
    assert all(body["ignore_eos"] and body["temperature"] == 0 for body in bodies)
    assert all(f"X-Request-Id: {id}\r\n".encode() in b"".join(asked) for id in told)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (WHOLE, "3 tokens instead of 4"),
        (
            b'HTTP/1.1 503 No\r\nContent-Length: 32\r\n\r\n{"error": {"message": "go away"}}',
            "go away",
        ),
        (b"HTTP/1.1 500 No\r\nContent-Length: 4\r\n\r\noops", "500 No"),
        (HEAD + chunk({"error": {"message": "it broke"}}) + b"0\r\n\r\n", "it broke"),
    ],
)
def test_what_is_no_answer_is_told(tmp_path: Path, content: bytes, words: str) -> None:
    with answering(tmp_path, content) as (path, _), pytest.raises(BadAnswer, match=words):
        Daemon(path, "m", lambda ids: [None for _ in ids]).run([[1]], 4, 10.0)


def test_nobody_at_the_socket_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadAnswer, match="does not answer"):
        Daemon(str(tmp_path / "none"), "m", lambda ids: []).run([[1]], 4, 10.0)


def test_what_is_not_whole_in_time_is_too_late(tmp_path: Path) -> None:
    with answering(tmp_path, HEAD + chunk(piece("a"))) as (path, _):
        with pytest.raises(TooLate, match="within 0 s"):
            run_load(_connect(path), [b"x"], 10.0, within=0.1)
        with pytest.raises(BadAnswer, match=r"nothing came for 0\.1 s"):
            run_load(_connect(path), [b"x"], 0.1)


def _connect(path: str) -> Callable[[], socket.socket]:
    def connect() -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        return sock

    return connect
