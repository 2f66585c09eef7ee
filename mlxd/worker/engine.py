"""What steps a model: `insert, remove, step, len`. No sockets, no text; owned by one thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    import mlx.core as mx

COMPLETION_BATCH = 32
"""Sequences that decode together."""

Sampler: TypeAlias = "Callable[[mx.array], mx.array]"
"""Logits of shape (rows, vocabulary), up to a constant per row, to one token per row."""
Processor: TypeAlias = "Callable[[mx.array, mx.array], mx.array]"
"""All tokens so far, the prompt's included, and logits of shape (1, vocabulary) to new logits."""


class Constraint(Protocol):
    """Says which tokens one sequence may have next. It never raises."""

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        """As a processor, for a sequence that is stepped by itself."""
        ...

    def take(self, token: int) -> None:
        """The sequence has another token."""
        ...

    def fill(self, row: Any) -> None:
        """Write a bit for each token into `row`, an array of int32 in which all are allowed."""
        ...


@dataclass(frozen=True, slots=True)
class Prompt:
    """One sequence to continue. Neither its sampler nor its processors may ever raise."""

    tokens: list[int]
    max_tokens: int
    sampler: Sampler
    processors: tuple[Processor, ...] = ()
    constraint: Constraint | None = None
    """Its word counts after that of the processors."""
    scored: bool = False
    """Whether log-probabilities are wanted with its tokens."""
    answered: int = 0
    """How many of `tokens`, the last ones, are its own answer so far."""


class Token(Protocol):
    """One generated token, the last of its sequence when `finish_reason` is set."""

    uid: int
    token: int
    logprobs: Any
    """An evaluated float32 row over the vocabulary for scored sequences, else None."""
    finish_reason: str | None
    """`stop`: an end-of-sequence token (it is `token`). `length`: max_tokens are reached."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one step has done."""

    tokens: Sequence[Token]
    started: Sequence[int]
    """Uids whose prefill it began."""


class Engine(Protocol):
    """Continuous batching as four verbs."""

    def insert(self, prompts: Sequence[Prompt]) -> list[int]:
        """Queue sequences; returns their uids. Raises ValueError, and then queues none."""
        ...

    def remove(self, uids: Sequence[int]) -> None:
        """Forget sequences, at whatever stage; unknown ones are ignored."""
        ...

    def step(self) -> Step:
        """Decode one token for each running sequence, and prefill one chunk of the waiting."""
        ...

    def __len__(self) -> int:
        """How many sequences are queued or running."""
        ...
