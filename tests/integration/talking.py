"""How these tests talk to a daemon: questions, streams held open, facts that are awaited."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx
import psutil
import pytest

from tests.support.daemon import Daemon

Json = dict[str, Any]
T = TypeVar("T")

ENDLESS = "tiny-endless"
PATHS = ("/api/generate", "/api/chat", "/v1/completions", "/v1/chat/completions")
IN_TURN = [
    pytest.param(path, marks=[pytest.mark.slow] if n % 2 else []) for n, path in enumerate(PATHS)
]
"""Every path; each second one in the long form of the suite only."""
TRIES = 4
"""Of a blow that may come when the answer is over: who strikes may be held up."""
_POLL = 0.01
AT_ONCE = "eviction: {protect_recent: 0s, min_residency: 0s}\nreserve: {when_full: refuse}\n"
"""memory.yaml of a daemon that spares no idle model and lets no load wait."""


def body_for(path: str, model: str, prompt: str, *, tokens: int, **sampling: Any) -> Json:
    """The same question in the words of each endpoint; greedy unless told otherwise."""
    sampling = {"temperature": 0, **sampling}
    body: Json = {"model": model, "stream": False}
    if path.endswith("/completions"):
        body |= {"max_tokens": tokens, **sampling}
    else:
        body |= {"options": {"num_predict": tokens, **sampling}}
    if "chat" in path:
        return body | {"messages": [{"role": "user", "content": prompt}]}
    return body | {"prompt": prompt}


def generate(model: str, prompt: str, *, tokens: int, **sampling: Any) -> Json:
    """A body for /api/generate, streamed as it is by default."""
    body = body_for("/api/generate", model, prompt, tokens=tokens, **sampling)
    return body | {"stream": True}


def whole_text(path: str, answer: Json) -> str:
    match path:
        case "/api/generate":
            return str(answer["response"])
        case "/api/chat":
            return str(answer["message"]["content"])
        case "/v1/completions":
            return str(answer["choices"][0]["text"])
        case _:
            return str(answer["choices"][0]["message"]["content"])


def piece_of(path: str, record: Json) -> str:
    """The text in one record of a stream."""
    if path.startswith("/api/"):
        return whole_text(path, record)
    choice = record["choices"][0]
    return str(choice["text"] if "text" in choice else choice["delta"].get("content") or "")


def ndjson(response: httpx.Response) -> list[Json]:
    """The records of an NDJSON stream; a blank line, or a last line without its end, fails."""
    assert response.headers["content-type"].startswith("application/x-ndjson")
    lines = response.text.split("\n")
    assert lines.pop() == "", "the last line has no end"
    assert all(lines), "a blank line"
    return [json.loads(line) for line in lines]


def events(response: httpx.Response) -> list[str]:
    """The data of each server-sent event, comments left out."""
    assert response.headers["content-type"].startswith("text/event-stream")
    return data_of(response.text)


def data_of(stream: str) -> list[str]:
    """Of each event of a stream, or of its beginning; comments and ids left out."""
    blocks = stream.split("\n\n")
    assert blocks.pop() == "", "the last event has no end"
    lines = [[one for one in block.split("\n") if one[0] != ":"] for block in blocks]
    each = list(filter(None, lines))
    assert all(data.startswith("data: ") and not more[1:] for data, *more in each)
    assert all(line.startswith("id: ") for _, *more in each for line in more)
    return [data.removeprefix("data: ") for data, *_ in each]


def chunks(response: httpx.Response) -> list[Json]:
    """The chunks of an OpenAI stream that ended as it should."""
    *data, last = events(response)
    assert last == "[DONE]"
    return [json.loads(chunk) for chunk in data]


def records(path: str, response: httpx.Response) -> list[Json]:
    return ndjson(response) if path.startswith("/api/") else chunks(response)


def ask(daemon: Daemon, body: Json, path: str = "/api/generate") -> Json:
    """One whole answer."""
    response = daemon.http.post(path, json=body | {"stream": False})
    assert response.status_code == 200, response.text
    answer: Json = response.json()
    return answer


def say(daemon: Daemon, model: str, prompt: str, *, tokens: int, **sampling: Any) -> str:
    """The text of one whole greedy answer."""
    return str(ask(daemon, generate(model, prompt, tokens=tokens, **sampling))["response"])


class Held:
    """A stream that has begun, read as far as the test wants."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.records: list[Json] = []
        self._lines = response.iter_lines()

    def read(self, count: int) -> None:
        """Read until `count` more lines are there."""
        for _ in range(count):
            self.records.append(json.loads(next(self._lines)))

    def rest(self) -> list[Json]:
        """Read to the end; returns every record."""
        self.records += [json.loads(line) for line in self._lines]
        return self.records

    @property
    def text(self) -> str:
        return "".join(record.get("response", "") for record in self.records)

    def hang_up(self) -> None:
        self.response.close()


@contextmanager
def held(
    daemon: Daemon,
    model: str = ENDLESS,
    prompt: str = "hold",
    *,
    tokens: int = 8192,
    client: httpx.Client | None = None,
    body: Json | None = None,
) -> Iterator[Held]:
    """A stream of /api/generate with its first record read; hung up at the end of the block."""
    body = body or generate(model, prompt, tokens=tokens)
    with (client or daemon.http).stream("POST", "/api/generate", json=body) as response:
        if response.status_code != 200:
            response.read()
            raise AssertionError(response.text)
        stream = Held(response)
        stream.read(1)
        yield stream


def eventually(fact: Callable[[], T], what: str, within: float = 30.0) -> T:
    """Wait until `fact` is true and return it; what another process knows can only be looked at.

    `within` bears a machine that is several times slower than one that does nothing else.
    """
    deadline = time.monotonic() + within
    while not (found := fact()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within:g} s: {what}")
        time.sleep(_POLL)
    return found


def idle(daemon: Daemon, within: float = 30.0) -> None:
    """Until no request is active."""
    eventually(lambda: daemon.health()["active_requests"] == 0, "no active request", within)


def unload(daemon: Daemon, model: str) -> None:
    """Have a model out of memory, its worker gone."""
    daemon.http.post("/api/generate", json={"model": model, "keep_alive": 0})
    name = f"{model}:latest"

    def gone() -> bool:
        return name not in [m["name"] for m in daemon.http.get("/api/ps").json()["models"]]

    eventually(gone, f"{model} is unloaded")


def cached(daemon: Daemon) -> dict[str, Json]:
    """The loaded models of /health, by name."""
    return {model["name"]: model for model in daemon.health()["cached_models"]}


def workers_of(daemon: Daemon) -> dict[str, int]:
    """Model -> pid of its worker."""
    workers = daemon.admin.get("/admin/health")["workers"]
    return {one["model"]: one["pid"] for one in workers if one["pid"] and not gone(one["pid"])}


def spawned(daemon: Daemon, model: str) -> int:
    """How often a worker was started for a model, as the log has it."""
    return daemon.log_text().count(f"worker for {model} started")


def gone(pid: int) -> bool:
    """Whether a process is over."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def exchange(daemon: Daemon, *pieces: bytes) -> bytes:
    """Send bytes on a connection of their own and read one answer."""
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=20) as sock:
        for piece in pieces:
            sock.sendall(piece)
        return one_answer(sock)


def raw(daemon: Daemon, *pieces: bytes, timeout: float = 20.0) -> bytes:
    """Send bytes on a connection of their own and read until the daemon closes it."""
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=timeout) as sock:
        for piece in pieces:
            sock.sendall(piece)
        return drain(sock)


def one_answer(sock: socket.socket) -> bytes:
    """The head and the whole body of one answer, whatever becomes of the connection."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += _more(sock, received)
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split()[0])
    while len(body) < length:
        body += _more(sock, received)
    return head + b"\r\n\r\n" + body


def _more(sock: socket.socket, so_far: bytes) -> bytes:
    piece = sock.recv(65536)
    assert piece, f"closed after {so_far!r}"
    return piece


def drain(sock: socket.socket) -> bytes:
    received = b""
    try:
        while piece := sock.recv(65536):
            received += piece
    except ConnectionResetError:
        pass
    return received
