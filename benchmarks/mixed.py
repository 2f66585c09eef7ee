"""Requests of every kind, drawn by number, and what came of each: answers, refusals, hang-ups."""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import httpx

Json = dict[str, Any]
PATHS = ("/v1/chat/completions", "/api/chat", "/v1/completions", "/api/generate")
_WORDS = ("server", "answers", "request", "stream", "token", "batch", "model", "prompt", "step")
_REQUEST_SECONDS = 180.0
_PATIENCE_SECONDS = 3.0
"""The most that a client which was refused waits before its next request."""
_HOT = 0.92
_PHASE = 40
_LENGTHS = ((4, 50), (16, 30), (150, 14), (500, 4), (3000, 2))
"""Words of a prompt, at most, and of a hundred how many are about so long. A word is some three
tokens of the models' tokenizer, so that the longest do not fit their context.
"""
_CRASHES = ("worker_crashed", "worker_stalled", "model_load_failed", "internal_error")


@dataclass(frozen=True)
class Ask:
    """One request. `hang_up_after` is in records of a stream, or in tenths of a second."""

    number: int
    path: str
    model: str
    words: int
    tokens: int
    stream: bool
    hang_up_after: int | None = None

    def body(self) -> Json:
        draw = random.Random(self.number)
        text = " ".join(draw.choice(_WORDS) for _ in range(self.words))
        told = (
            {"messages": [{"role": "user", "content": text}]}
            if "chat" in self.path
            else {"prompt": text}
        )
        body: Json = {"model": self.model, "stream": self.stream, **told}
        if self.path.startswith("/api/"):
            return body | {"options": {"temperature": 0, "num_predict": self.tokens}}
        usage = {"stream_options": {"include_usage": True}} if self.stream else {}
        return body | {"temperature": 0, "max_tokens": self.tokens, **usage}


@dataclass(frozen=True)
class Came:
    """What came of one. `code` is mlxd's word for why; a status of 0 means no answer."""

    ask: Ask
    kind: str
    """answered, shortened, hung up, refused, failed (inside a stream) or broken."""
    status: int
    code: str
    seconds: float
    text: str = ""
    """Of a refusal or a failure."""
    retry_after: float = 0.0
    """Seconds, as a refusal asks for."""

    @property
    def bad(self) -> bool:
        """Neither an answer nor the client's own doing."""
        return self.kind in ("refused", "failed", "broken")

    @property
    def crashed(self) -> bool:
        """What memory that is managed never causes."""
        return self.bad and (self.code in _CRASHES or "engine process" in self.text)

    @property
    def explained(self) -> bool:
        """Whether a refusal says what an operator or a client needs to know."""
        numbers = len(re.findall(r"\d+", self.text))
        if self.code == "insufficient_memory":
            judged = "need" in self.text or "memory.watermarks" in self.text
            return judged and "available" in self.text and numbers >= 2
        return bool(self.text) and (self.code != "context_exceeded" or numbers >= 1)


def draw(
    count: int, models: Sequence[str], too_large: str, *, seed: int, longest: int
) -> list[Ask]:
    """For a phase two models are hot; a few requests are for any, and for one that never fits.

    `longest` is in words.
    """
    lengths = [(words, share) for words, share in _LENGTHS if words <= longest]
    asks = []
    hot: list[str] = []
    chance = random.Random(seed)
    for number in range(count):
        if number % _PHASE == 0:
            hot = chance.sample(list(models), 2)
        model = chance.choice(hot if chance.random() < _HOT else models)
        if number % 100 == 5:
            model = too_large
        stream = chance.random() < 0.5
        [(words, _)] = chance.choices(lengths, [share for _, share in lengths])
        asks.append(
            Ask(
                number=number, path=PATHS[number % len(PATHS)], model=model,
                words=chance.randint(words // 2, words), stream=stream,
                tokens=chance.choices((4, 16, 48, 256), (30, 40, 25, 5))[0],
                hang_up_after=chance.randint(0, 4) if chance.random() < 0.08 else None,
            )
        )  # fmt: skip
    return asks


def ask_all(
    url: str, asks: list[Ask], clients: int, until: float, told: Callable[[int], None]
) -> list[Came]:
    """By so many clients at once; what has not begun at `until` (monotonic) is left out.

    A client that was refused does as Retry-After says, up to a limit, and goes on with another.
    """
    waiting = iter(asks)
    lock = threading.Lock()
    came: list[Came] = []

    def work() -> None:
        with httpx.Client(base_url=url, timeout=_REQUEST_SECONDS) as client:
            while time.monotonic() < until:
                with lock:
                    ask = next(waiting, None)
                if ask is None:
                    return
                result = _one(client, ask)
                with lock:
                    came.append(result)
                    told(len(came))
                time.sleep(min(result.retry_after, _PATIENCE_SECONDS))

    with ThreadPoolExecutor(clients) as pool:
        for done in [pool.submit(work) for _ in range(clients)]:
            done.result()
    return came


def _one(client: httpx.Client, ask: Ask) -> Came:
    began = time.perf_counter()
    try:
        told = _streamed(client, ask) if ask.stream else _whole(client, ask)
    except httpx.ReadTimeout:
        told = Told("hung up", 0)
        if ask.hang_up_after is None:
            told = Told("broken", 0, "no_answer", "nothing came in time")
    except httpx.HTTPError as error:
        told = Told("broken", 0, type(error).__name__, repr(error))
    return Came(ask, *told[:3], time.perf_counter() - began, *told[3:])


class Told(NamedTuple):
    """What a client is told in the end."""

    kind: str
    status: int
    code: str = ""
    text: str = ""
    retry_after: float = 0.0


def _whole(client: httpx.Client, ask: Ask) -> Told:
    patience = _REQUEST_SECONDS
    if ask.hang_up_after is not None:
        patience = 0.05 + ask.hang_up_after / 10
    answer = client.post(ask.path, json=ask.body(), timeout=patience)
    if answer.status_code != 200:
        return _refused(answer)
    body = answer.json()
    return _finished(ask, _tokens_of(body))


def _streamed(client: httpx.Client, ask: Ask) -> Told:
    with client.stream("POST", ask.path, json=ask.body()) as answer:
        if answer.status_code != 200:
            answer.read()
            return _refused(answer)
        tokens = None
        for number, record in enumerate(_records(answer)):
            if "error" in record:
                return Told("failed", 200, _code_of(record), json.dumps(record))
            if number == ask.hang_up_after:
                return Told("hung up", 200)
            tokens = _tokens_of(record) or tokens
        return _finished(ask, tokens)


def _records(answer: httpx.Response) -> Iterator[Json]:
    for line in answer.iter_lines():
        text = line.removeprefix("data: ")
        if text.startswith("{"):
            yield json.loads(text)


def _tokens_of(record: Json) -> int | None:
    if "eval_count" in record:
        return int(record["eval_count"])
    usage = record.get("usage")
    return int(usage["completion_tokens"]) if usage else None


def _finished(ask: Ask, tokens: int | None) -> Told:
    """The models cannot end by themselves: fewer tokens than asked for were cut short."""
    if tokens is None:
        return Told("broken", 200, "no_end", "an answer without its end")
    return Told("answered" if tokens == ask.tokens else "shortened", 200)


def _refused(answer: httpx.Response) -> Told:
    code = answer.headers.get("x-mlxd-code", "")
    later = float(answer.headers.get("retry-after", 0))
    return Told("refused", answer.status_code, code, answer.text, later)


def _code_of(record: Json) -> str:
    error = record["error"]
    return str(error.get("code") or error.get("type")) if isinstance(error, dict) else "error"


def by_kind(came: list[Came]) -> dict[str, int]:
    return dict(Counter(one.kind for one in came).most_common())


def by_reason(came: list[Came]) -> dict[str, int]:
    """Of those refused or failed: status and code."""
    return dict(Counter(f"{one.status} {one.code}" for one in came if one.bad).most_common())
