"""How long prefill takes, as an engine's own steps have shown, and how much of it a step may do."""

from __future__ import annotations

import math

STALL_SECONDS = 0.5
"""Of prefill in one step, about, while something decodes."""
ALONE_SECONDS = 2.0
"""And while nothing does: so long a cancel goes unheard, and a ping says that no step ended."""
FIRST_TOKENS = 64
"""Of all prompts together in the first step, before anything is known."""
FIRST_ON_GPU_TOKENS = 512
"""There even a large model reads as many in a second or so, and a short prompt stays in one piece:
on a GPU the pieces change the last bits of what is computed, and so, now and then, a token."""
LEAST_TOKENS = 16
"""And at least, however slow they are; fewer tell nothing, where they take as long as one does."""


class Pace:
    """Of one model on one machine, as both are now."""

    def __init__(self, *, gpu: bool = False) -> None:
        self._first = FIRST_ON_GPU_TOKENS if gpu else FIRST_TOKENS
        self._token: float | None = None
        """Seconds that a token of prefill takes."""
        self._decode = 0.0
        """Seconds of a recent step that only decoded."""

    def tokens(self, rows: int, *, decoding: bool) -> int:
        """Of each of `rows` prompts, for the next step."""
        rows = max(1, rows)
        together = float(self._first)
        if self._token is not None:
            seconds = STALL_SECONDS if decoding else ALONE_SECONDS
            together = seconds / max(self._token, 1e-9)
        return max(math.ceil(LEAST_TOKENS / rows), int(together / rows))

    def decoded(self, seconds: float) -> None:
        """A step has decoded, and nothing else."""
        self._decode = seconds

    def prefilled(self, tokens: int, seconds: float, *, decoding: bool) -> None:
        """A step has prefilled so many tokens, padding included, and may have decoded too."""
        if tokens < LEAST_TOKENS:
            return
        if decoding:
            seconds = max(seconds - self._decode, seconds / 2)
        token = seconds / tokens
        if self._token is None:
            self._token = token
            return
        share = tokens / (tokens + FIRST_TOKENS)
        if token < self._token:  # and fewer tokens than allowed never take less each
            share = max(share, 0.5)
        self._token += share * (token - self._token)
