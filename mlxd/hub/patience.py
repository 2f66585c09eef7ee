"""How long a hub that falters is borne with."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import httpx2

from mlxd.hub.failure import PullFailure

T = TypeVar("T")

_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_LONGEST_WAIT = 60.0
_WORDS: dict[type[Exception], str] = {
    httpx2.ConnectError: "nothing listens there, or its name is unknown",
    httpx2.ConnectTimeout: "it does not answer",
    httpx2.ReadTimeout: "it has stopped sending",
    httpx2.ProxyError: "the proxy refuses",
}


class Faltered(Exception):
    """It may well go better the next time; `wait` is what the hub asked for, in seconds."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


def may_pass(status: int) -> bool:
    """Whether asking again makes sense after such an answer."""
    return status in _PASSING


def wait_of(response: httpx2.Response) -> float | None:
    """Retry-After in seconds; None when it says none."""
    text = response.headers.get("Retry-After", "").strip()
    return float(text) if text.isdecimal() and len(text) < 9 else None


@dataclass(frozen=True, slots=True)
class Patience:
    """`tries` in a row without a byte of progress, each wait twice as long as the one before."""

    tries: int = 6
    first: float = 0.5
    pause: Callable[[float], None] = time.sleep

    def ask(self, question: Callable[[], T]) -> T:
        """Its answer, asked again while the hub falters. Raises PullFailure."""
        failures = 0
        while True:
            try:
                return question()
            except (httpx2.TransportError, Faltered) as error:
                failures += 1
                self.bear(failures, error)

    def bear(self, failures: int, error: Exception) -> None:
        """Wait after so many failures in a row. Raises PullFailure when it is enough."""
        wait = error.wait if isinstance(error, Faltered) else None
        if failures >= self.tries or (wait is not None and wait > _LONGEST_WAIT):
            raise PullFailure("unreachable", f"the hub cannot be reached: {_words(error)}")
        self.pause(max(wait or 0.0, self.first * 2 ** (failures - 1)))


def _words(error: Exception) -> str:
    """No address: the hub's may be signed."""
    if isinstance(error, Faltered):
        return str(error)
    for kind, words in _WORDS.items():
        if isinstance(error, kind):
            return words
    return "the connection breaks"
