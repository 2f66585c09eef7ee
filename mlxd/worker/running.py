"""One request in the engine: its tokens become what is sent, and in the end its figures."""

from __future__ import annotations

from dataclasses import dataclass, field

from mlxd.core.events import FinishReason
from mlxd.ipc.messages import Ended, Piece
from mlxd.worker.answer import Answer, PlainAnswer, joined
from mlxd.worker.engine import Token
from mlxd.worker.job import Job
from mlxd.worker.sampling import Guard

WHOLE_EVERY = 64
"""Tokens of an unstreamed answer that travel together."""


@dataclass(slots=True)
class Running:
    """One request in the engine."""

    job: Job
    answer: Answer | PlainAnswer
    guard: Guard
    started: float = 0.0
    """When its prefill began."""
    first: float = 0.0
    tokens: int = 0
    """Generated ones; an end-of-sequence token counts, as mlx-lm counts it."""
    finish: FinishReason | None = None
    """Set by its last token."""
    kept: list[Piece] = field(default_factory=list)
    """What an unstreamed answer has not sent yet."""

    def take(self, token: Token, now: float, out: list[Piece], *, last: bool = False) -> bool:
        """Add one token; what it makes known goes to `out`. Returns whether the request is over.

        `last`: there is no memory for another.
        """
        self.tokens += 1
        if self.tokens == 1:
            self.first = now
        pieces = out if self.job.request.stream else self.kept
        if token.finish_reason != "stop":
            self.answer.take(token.token, token.logprobs, pieces)
        self.finish = self._finish(token.finish_reason, last)
        over = self.finish is not None
        if over:
            self.answer.finish(pieces, truncated=self.finish == "length")
        if pieces is self.kept and (over or self.tokens % WHOLE_EVERY == 0):
            out += joined(pieces)
            pieces.clear()
        return over

    def ended(self, now: float) -> Ended:
        stopped = self.answer.stopped
        return Ended(
            id=self.job.id,
            reason="length" if self.finish == "length" and stopped is None else "stop",
            prompt_tokens=len(self.job.tokens),
            completion_tokens=self.tokens,
            cached_tokens=0,
            prefill_seconds=self.first - self.started,
            decode_seconds=now - self.first,
            stop_string=stopped,
        )

    def _finish(self, said: str | None, last: bool) -> FinishReason | None:
        if said == "stop" or self.answer.stopped is not None:
            return "stop"
        return "length" if said is not None or last else None
