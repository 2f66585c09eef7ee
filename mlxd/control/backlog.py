"""What has come of one answer and is not yet taken by its consumer."""

from __future__ import annotations

from dataclasses import replace

from mlxd.core.clock import Clock
from mlxd.core.events import Burst, GenerationEvent, ReasoningDelta, TextDelta

_MANY = 64
"""Events from which on pieces of text are joined."""
_LONG = 4096
"""Characters of text that nothing more is joined to."""
_LITTLE = 4096
"""Bytes up to which text is told at once, whole: more is its consumer's to divide."""
_LOGPROB_BYTES = 100
"""About what one token of a list of log-probabilities takes."""
_PATIENCE = 1.0
"""Seconds: what comes faster than it can be taken, for a moment, is not too much."""


class Backlog:
    """Small, whatever the consumer does: the text of an answer is, its pieces need not be."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._events: list[GenerationEvent] = []
        self._bytes = 0
        self._since = 0.0
        self._rare = False
        """There is more in it than text."""

    def __bool__(self) -> bool:
        return bool(self._events)

    def add(self, event: GenerationEvent) -> None:
        if not self._events:
            self._since = self._clock.monotonic()
        if isinstance(event, TextDelta | ReasoningDelta):
            self._bytes += len(event.text)
            if event.logprobs:
                tokens = sum(1 + len(entry.top) for entry in event.logprobs)
                self._bytes += _LOGPROB_BYTES * tokens
            if len(self._events) >= _MANY and self._joined(event):
                return
        else:
            self._rare = True
        self._events.append(event)

    def exceeds(self, most: int) -> bool:
        """Whether the consumer has fallen behind by more than so many bytes, which are kept."""
        return self._bytes > most and self._clock.monotonic() - self._since >= _PATIENCE

    def take(self) -> Burst:
        """All of it."""
        burst, self._events, self._bytes, self._rare = self._events, [], 0, False
        return burst

    def peek(self) -> Burst:
        """All of it, which stays until it is taken."""
        return self._events

    @property
    def plain(self) -> bool:
        """There is text of the answer, a little, and nothing else."""
        return bool(self._events) and not self._rare and self._bytes <= _LITTLE

    def _joined(self, event: TextDelta | ReasoningDelta) -> bool:
        last = self._events[-1]
        if type(last) is not type(event) or len(last.text) >= _LONG:
            return False
        self._events[-1] = replace(
            last, text=last.text + event.text, logprobs=last.logprobs + event.logprobs
        )
        return True
