"""Tokens that one client has used within a window."""

from __future__ import annotations

from array import array

_SLOTS = 1000
"""Of a window: what is used within one leaves it together, with the last of it."""


class Spent:
    """It holds no policy: the window comes with each question. A longer one than before counts what
    is still remembered.
    """

    __slots__ = ("_times", "_tokens", "_total")

    def __init__(self) -> None:
        self._times: array[float] = array("d")
        """Rising."""
        self._tokens: array[int] = array("q")
        self._total = 0

    def add(self, tokens: int, window: float, now: float) -> None:
        self._forget(window, now)
        slot = window / _SLOTS
        if self._times and self._times[-1] // slot == now // slot:
            self._times[-1] = now
            self._tokens[-1] += tokens
        else:
            self._times.append(now)
            self._tokens.append(tokens)
        self._total += tokens

    def used(self, window: float, now: float) -> int:
        self._forget(window, now)
        return self._total

    def until_below(self, tokens: int, window: float, now: float) -> float:
        """Seconds until less than that is used within the window; 0: less is."""
        left, wait = self.used(window, now), 0.0
        for at, used in zip(self._times, self._tokens, strict=True):
            if left < tokens:
                break
            left -= used
            wait = at + window - now
        return wait

    def until_more(self, quota: int, window: float, now: float) -> float:
        """Seconds until more of a quota is left; 0: all of it is."""
        used = self.used(window, now)
        return self.until_below(min(quota, used), window, now) if used else 0.0

    def _forget(self, window: float, now: float) -> None:
        """What has left the window."""
        gone = 0
        while gone < len(self._times) and self._times[gone] <= now - window:
            self._total -= self._tokens[gone]
            gone += 1
        del self._times[:gone], self._tokens[:gone]
