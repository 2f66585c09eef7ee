"""One streamed answer, with the time at which each of its tokens came."""

from __future__ import annotations

import http.client
import itertools
import json
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from mlxd.cli.admin import Refused, UnixConnection
from mlxd.cli.client import NoAnswer

Json = dict[str, Any]

PROMPT = "Count from one to a hundred in words, one number after the other:"
_PATIENCE_SECONDS = 300.0
"""Without a byte: a large model may be loaded anew in the middle of an answer."""
_APART_SECONDS = 5e-5
"""What was waiting in the socket is read faster than that."""
_LEAST_APART = 8
"""Tokens that came by themselves: on a busy machine many are there when they are looked for."""
_LEAST_OF_MEAN = 0.1
"""Of the mean pause: shorter ones are those of reading what is there."""
_LEAST_OF_DECODE = 0.5
_LEAST_OF_WHOLE = 0.25
"""Where the daemon does not say how long it decoded."""


@dataclass(slots=True)
class Answer:
    id: str = field(default_factory=lambda: f"mlxd-proof-{secrets.token_hex(8)}")
    """Of its request."""
    tokens: list[str] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)
    """Seconds since it was asked, of each record with tokens."""
    finish: str = ""
    error: str = ""
    """What the daemon said in the middle of the stream, if it broke off."""

    @property
    def first(self) -> float:
        """Seconds until the first token."""
        return self.arrivals[0] if self.arrivals else 0.0

    @property
    def rate(self) -> float:
        """Tokens a second, the first one aside."""
        return (len(self.tokens) - 1) / self.span if self.span > 0 else 0.0

    @property
    def span(self) -> float:
        """Seconds from the first record with tokens to the last."""
        return self.arrivals[-1] - self.arrivals[0] if self.arrivals else 0.0

    def one_by_one(self, decode_seconds: float) -> bool:
        """Whether they came as they were made, and not all at the end. `decode_seconds`: how long
        the daemon made them; 0 where that is not known.
        """
        whole = self.arrivals[-1] if self.arrivals else 0.0
        least = _LEAST_OF_DECODE * decode_seconds or _LEAST_OF_WHOLE * whole
        return self.span >= least and self._apart() >= min(_LEAST_APART, len(self.tokens))

    def _apart(self) -> int:
        """The records that came by themselves."""
        mean = self.span / max(1, len(self.arrivals) - 1)
        least = max(_APART_SECONDS, _LEAST_OF_MEAN * mean)
        pairs = itertools.pairwise(self.arrivals)
        return 1 + sum(later - earlier > least for earlier, later in pairs)

    @property
    def whole(self) -> bool:
        return bool(self.finish) and not self.error

    def differs_at(self, other: Answer) -> int | None:
        """The first token that is another."""
        if self.tokens == other.tokens:
            return None
        pairs = enumerate(zip(self.tokens, other.tokens, strict=False))
        shorter = min(len(self.tokens), len(other.tokens))
        return next((index for index, (mine, its) in pairs if mine != its), shorter)


def ask(
    socket: str, model: str, tokens: int, watch: Callable[[int], None] = lambda _: None
) -> Answer:
    """Greedy, of exactly so many tokens. `watch` is told how many there are after each that comes.

    Raises NoAnswer, Refused.
    """
    answer = Answer()
    begun = time.perf_counter()
    for record in _records(socket, answer.id, _body(model, tokens)):
        if "error" in record:
            answer.error = _words(record["error"])
            break
        if _took(answer, record, time.perf_counter() - begun):
            watch(len(answer.tokens))
    return answer


def _body(model: str, tokens: int) -> Json:
    """`logprobs`, since they name each token: two texts may be alike and two tokens not."""
    return {
        "model": model, "prompt": PROMPT, "max_tokens": tokens, "temperature": 0,
        "ignore_eos": True, "stream": True, "logprobs": 1,
    }  # fmt: skip


def _took(answer: Answer, record: Json, now: float) -> bool:
    """Whether it has tokens."""
    (choice,) = record["choices"] or [{}]
    answer.finish = choice.get("finish_reason") or answer.finish
    tokens = (choice.get("logprobs") or {}).get("tokens") or []
    if tokens:
        answer.tokens += tokens
        answer.arrivals.append(now)
    return bool(tokens)


def _records(socket: str, id: str, body: Json) -> Iterator[Json]:
    connection = UnixConnection(socket, _PATIENCE_SECONDS)
    try:
        headers = {"Content-Type": "application/json", "X-Request-Id": id}
        connection.request("POST", "/admin/completions", json.dumps(body), headers)
        response = connection.getresponse()
        if response.status >= 400:
            raise Refused(response.status, _words(json.loads(response.read()).get("error")))
        for line in response:
            data = line.removeprefix(b"data: ").strip()
            if line.startswith(b"data: ") and data != b"[DONE]":
                yield json.loads(data)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise NoAnswer(f"the answer broke off: {error}") from error
    finally:
        connection.close()


def _words(error: object) -> str:
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)
