"""Whose step is next: a chunk of prompts, or the answers' next tokens."""

from __future__ import annotations

from mlxd.worker.tuning import Tuned


class Share:
    """Between two chunks answers have their part of the time, and one token at least."""

    def __init__(self, tuned: Tuned) -> None:
        self._tuned = tuned
        self._owed = 0.0
        """Seconds that answers have coming before another chunk is read."""
        self._waits = False
        """A chunk was read, and no token has come since."""

    @property
    def is_due(self) -> bool:
        """Whether what decodes comes before a chunk."""
        return self._waits or self._owed > 0.0

    def read(self, seconds: float, *, decoding: bool) -> None:
        """A chunk took so long; `decoding`: while there were answers to go on with."""
        self._waits = True
        share = self._tuned.now.decode_share
        self._owed = seconds * share / (1.0 - share) if decoding else 0.0

    def decoded(self) -> None:
        """A step has given tokens."""
        self._waits = False

    def passed(self, seconds: float) -> None:
        """What such a step took, and all that was done with its tokens."""
        self._owed = max(0.0, self._owed - seconds)
