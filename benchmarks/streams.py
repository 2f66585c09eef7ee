"""Streams that are always there: each slot asks again as soon as its answer has ended.

What came is noted as bytes with their times; what it means is read afterwards.
"""

from __future__ import annotations

import http.client
import json
import random
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Json = dict[str, Any]
PATHS = ("/api/generate", "/v1/chat/completions", "/api/chat", "/v1/completions")
_WORDS = ("server", "answers", "request", "stream", "token", "batch", "model", "prompt", "step")
_SILENT_SECONDS = 60.0
_MOST_PAUSE = 0.5
"""What a client waits at most before it asks again after an error; Retry-After may say less."""
_REFUSED = (503, 504)

Kind = Literal["finished", "failed", "left", "other"]
"""`failed` says clearly why; `left`: the client hung up."""


@dataclass(frozen=True)
class Ask:
    """One request; greedy without a seed."""

    number: int
    path: str
    model: str
    words: int
    tokens: int
    seed: int | None = None

    def body(self) -> Json:
        draw = random.Random(f"{self.model}/{self.number}")
        text = " ".join(draw.choice(_WORDS) for _ in range(self.words))
        told = (
            {"messages": [{"role": "user", "content": text}]}
            if "chat" in self.path
            else {"prompt": text}
        )
        sampling: Json = {"temperature": 0}
        if self.seed is not None:
            sampling = {"temperature": 0.9, "top_p": 0.95, "seed": self.seed}
        body: Json = {"model": self.model, "stream": True, **told}
        if self.path.startswith("/api/"):
            return body | {"options": {"num_predict": self.tokens, **sampling}}
        return body | {"max_tokens": self.tokens, **sampling}


def draw_asks(model: str, count: int, tokens: tuple[int, int], seed: int) -> list[Ask]:
    """Every endpoint, greedy and seeded, prompts and answers of many lengths."""
    chance = random.Random(f"{model}/{seed}")
    return [
        Ask(
            number=number, path=PATHS[number % len(PATHS)], model=model,
            words=chance.randint(2, 20), tokens=chance.randint(*tokens),
            seed=chance.randint(1, 1 << 30) if number // len(PATHS) % 2 else None,
        )
        for number in range(count)
    ]  # fmt: skip


@dataclass
class Stream:
    """One answer as it came. Times are monotonic."""

    ask: Ask
    began: float
    records: list[tuple[float, bytes]] = field(default_factory=list)
    """JSON without its framing."""
    ended: float = float("inf")
    status: int = 0
    code: str = ""
    """mlxd's word for why it failed, or what else went wrong."""
    error: str = ""
    retry_after: float = 0.0
    kind: Kind = "other"
    _pieces: list[tuple[float, str]] | None = None

    @property
    def pieces(self) -> list[tuple[float, str]]:
        """Texts and when they came."""
        if self._pieces is not None:
            return self._pieces
        over = self.ended < float("inf")  # before they are read: one may come meanwhile
        found = [(at, _piece_of(json.loads(record))) for at, record in list(self.records)]
        found = [(at, text) for at, text in found if text]
        if over:
            self._pieces = found
        return found

    @property
    def text(self) -> str:
        return "".join(text for _, text in self.pieces)

    @property
    def heard(self) -> float:
        """When its last record came; 0 before the first."""
        return self.records[-1][0] if self.records else 0.0


def _piece_of(record: Json) -> str:
    if "error" in record:
        return ""
    if "choices" in record:
        choices = record["choices"]
        if not choices:
            return ""
        return str(choices[0].get("text") or choices[0].get("delta", {}).get("content") or "")
    return str(record.get("response") or record.get("message", {}).get("content") or "")


def run(
    port: int, stream: Stream, *, source: str = "127.0.0.1", leave_after: int = sys.maxsize
) -> Stream:
    """Ask, and read to the end of the answer, whatever that is, or so many records of it.

    `source` is the address to ask from.
    """
    connection = http.client.HTTPConnection(
        "127.0.0.1", port, timeout=_SILENT_SECONDS, source_address=(source, 0)
    )
    try:
        _exchange(connection, stream, leave_after)
    except TimeoutError:
        stream.code = "silent"
    except (OSError, http.client.HTTPException) as error:
        stream.code, stream.error = "broken", repr(error)
    finally:
        connection.close()
        stream.ended = time.monotonic()
    return stream


def _exchange(connection: http.client.HTTPConnection, stream: Stream, leave_after: int) -> None:
    body = json.dumps(stream.ask.body())
    headers = {"Content-Type": "application/json"}
    connection.request("POST", stream.ask.path, body, headers)
    answer = connection.getresponse()
    stream.status = answer.status
    if answer.status != 200:
        _refused(answer, stream)
        return
    last = b""
    while line := answer.readline():
        text = line.strip().removeprefix(b"data: ")
        if text.startswith(b"{"):
            stream.records.append((time.monotonic(), text))
        if not text.startswith(b"id: "):
            last = text or last
        if len(stream.records) >= leave_after:
            stream.kind = "left"
            return
    _judge_end(stream, last)


def _refused(answer: http.client.HTTPResponse, stream: Stream) -> None:
    """An error is clear when it says which it is, and is one of those that may come."""
    stream.code = answer.headers.get("X-Mlxd-Code", "")
    stream.retry_after = float(answer.headers.get("Retry-After", 0))
    stream.error = answer.read().decode("utf-8", "replace")
    if answer.status in _REFUSED and stream.code and "error" in stream.error:
        stream.kind = "failed"


def _judge_end(stream: Stream, last: bytes) -> None:
    """The last record says that it is done, or why not."""
    if not stream.records:
        stream.code = "empty"
        return
    records = [json.loads(text) for _, text in stream.records[-2:]]
    record = records[-1]
    if "error" in record:
        error = record["error"]
        stream.error = json.dumps(record)
        if isinstance(error, dict):
            stream.code = str(error.get("code") or error.get("type"))
        else:
            stream.code = "error in the stream"
        if stream.code != "internal_error":
            stream.kind = "failed"
    elif record.get("done") or (last == b"[DONE]" and any(map(_has_finish, records))):
        stream.kind = "finished"
    else:
        stream.code = "no end"


def _has_finish(record: Json) -> bool:
    return any(choice.get("finish_reason") for choice in record.get("choices", ()))


class Streams:
    """So many of each model, for the length of the block; `now` has those that run."""

    def __init__(self, port: int, asks: Iterable[Sequence[Ask]], each: int, seed: int) -> None:
        self.done: list[Stream] = []
        self._port = port
        self._over = threading.Event()
        self._retired: set[Ask] = set()
        slots = [(own, number) for own in asks for number in range(each)]
        self._now: list[Stream | None] = [None] * len(slots)
        self._threads = [
            threading.Thread(target=self._ask_on, args=(slot, own, f"{seed}/{slot}"), daemon=True)
            for slot, (own, _) in enumerate(slots)
        ]

    @property
    def now(self) -> list[Stream]:
        return [stream for stream in self._now if stream is not None]

    @property
    def all(self) -> list[Stream]:
        """Those that are over, and those that run."""
        done = list(self.done)
        return done + [stream for stream in self.now if stream.ended == float("inf")]

    def of(self, model: str) -> list[Stream]:
        """Those of a model that run."""
        return [stream for stream in self.now if stream.ask.model == model]

    def __enter__(self) -> Streams:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """What runs ends by itself."""
        self._over.set()
        for thread in self._threads:
            thread.join(3 * _SILENT_SECONDS)

    def _ask_on(self, slot: int, asks: Sequence[Ask], seed: str) -> None:
        chance = random.Random(seed)
        while not self._over.is_set():
            left = [ask for ask in asks if ask not in self._retired] or list(asks)
            stream = Stream(chance.choice(left), time.monotonic())
            self._now[slot] = stream
            run(self._port, stream)
            self.done.append(stream)
            if stream.code == "request_quarantined":
                self._retired.add(stream.ask)  # who is told never to ask again does not
            if stream.kind != "finished":
                time.sleep(min(_MOST_PAUSE, stream.retry_after or _MOST_PAUSE))
        self._now[slot] = None
