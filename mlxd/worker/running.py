"""One request in the engine: its tokens become what is sent, and in the end its figures."""

from __future__ import annotations

from dataclasses import dataclass, field

from mlxd.core.events import FinishReason
from mlxd.ipc.messages import Ended, Piece, Taken
from mlxd.worker.answer import Answer, PlainAnswer, joined
from mlxd.worker.engine import Drafts, Token
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
    tokens: list[int] = field(default_factory=list)
    """The answer's, from its very first; an end-of-sequence token counts, as mlx-lm counts it."""
    told: int = 0
    """How many of them the daemon knows."""
    known: int = 0
    """How many of them have made known exactly what was put out."""
    started: float = 0.0
    """When its prefill began here; 0: it has not."""
    first: float = 0.0
    cached: int = 0
    """Tokens of its prompt that were not computed again."""
    finish: FinishReason | None = None
    """Set by its last token."""
    drafted: int = 0
    """Tokens that were proposed for it by a model that drafts."""
    accepted: int = 0
    """Of them, those that were right."""
    kept: list[Piece] = field(default_factory=list)
    """What an unstreamed answer has not sent yet."""

    def take(self, token: Token, now: float, out: list[Piece], *, last: bool = False) -> bool:
        """Add one token; what it makes known goes to `out`. Returns whether the request is over.

        `last`: there is no memory for another.
        """
        if self.begins:
            self.first = now
        self.tokens.append(token.token)
        pieces = out if self.job.request.stream else self.kept
        if token.finish_reason != "stop":
            self.answer.take(token.token, token.logprobs, pieces)
        elif self.job.request.echo:
            self.answer.score(token.token, token.logprobs)
        self.finish = self._finish(token.finish_reason, last)
        over = self.finish is not None
        if over:
            self.answer.finish(pieces, truncated=self.finish == "length")
        if self._telling:
            self.known = len(self.tokens)
            if pieces is self.kept:
                out += joined(pieces)
                pieces.clear()
        return over

    def count(self, drafts: Drafts) -> None:
        """What a step has drafted for it."""
        self.drafted += drafts.drafted
        self.accepted += drafts.accepted

    def tell(self) -> Taken | None:
        """The tokens behind the pieces that were put out, when there are new ones."""
        if self.known <= self.told:
            return None
        tokens, self.told = self.tokens[self.told : self.known], self.known
        return Taken(self.job.id, tokens)

    def close(self, now: float, out: list[Piece]) -> Ended:
        """It has all tokens that it may have, and none of them ended it."""
        self.started = self.first = now
        self.finish = "length"
        self.answer.finish(out, truncated=True)
        return self.ended(now)

    @property
    def begins(self) -> bool:
        """Whether no token has come here yet."""
        return len(self.tokens) == len(self.job.earlier)

    def ended(self, now: float) -> Ended:
        answer = self.answer
        return Ended(
            id=self.job.id,
            reason="length" if self.finish == "length" and not answer.over else "stop",
            prompt_tokens=len(self.job.tokens),
            completion_tokens=len(self.tokens),
            cached_tokens=self.cached,
            prefill_seconds=self.first - self.started,
            decode_seconds=now - self.first,
            stop_string=answer.stopped,
            reasoning_tokens=answer.reasoning_tokens,
            malformed_calls=answer.malformed_calls,
            drafted_tokens=self.drafted,
            accepted_tokens=self.accepted,
            at=now,
        )

    @property
    def _telling(self) -> bool:
        """Whether what is known goes out now: a stream's at once, as far as its scores do; that of
        an unstreamed answer in large pieces.
        """
        if self.finish is not None:
            return True
        enough = 1 if self.job.request.stream else WHOLE_EVERY
        return len(self.tokens) - self.told >= enough and self.answer.settled

    def _finish(self, said: str | None, last: bool) -> FinishReason | None:
        if said == "stop" or self.answer.over:
            return "stop"
        return "length" if said is not None or last else None
