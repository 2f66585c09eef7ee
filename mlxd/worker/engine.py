"""What steps a model: `insert, remove, step, len`. No sockets, no text; owned by one thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

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
    boundaries: tuple[int, ...] = ()
    """Lengths of beginnings of `tokens` that other prompts may share, in rising order: behind the
    system's turn and the tools, behind later turns."""
    owner: str = ""
    """Whose it is: beginnings are shared with the same owner's prompts only, those within `shared`
    with everybody's."""
    shared: int = 0
    """Tokens of the system's turn and the tools: nothing in them is one user's."""
    ids: bytes = b""
    """`tokens` in 4 bytes each (`ipc.messages.packed`), where they are known like that already."""


class Token(Protocol):
    """One generated token, the last of its sequence when `finish_reason` is set."""

    uid: int
    token: int
    logprobs: Any
    """An evaluated float32 row over the vocabulary for scored sequences, else None."""
    finish_reason: str | None
    """`stop`: an end-of-sequence token (it is `token`). `length`: max_tokens are reached."""


@dataclass(frozen=True, slots=True)
class Reuse:
    """What a prompt's prefill begins with."""

    uid: int
    cached: int
    """Tokens that were not computed again."""
    missed: int = -1
    """Where the nearest beginning that is kept differs from the prompt: the first such token;
    -1: nothing that is kept begins like it, or all that could serve did."""


@dataclass(frozen=True, slots=True)
class Drafts:
    """Tokens that a draft model has proposed for one sequence in one step."""

    uid: int
    drafted: int
    accepted: int
    """Of them, those that the model itself has drawn."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one step has done."""

    tokens: Sequence[Token]
    """Several of one sequence in their order, where they were drafted."""
    started: Sequence[int]
    """Uids whose prefill it began."""
    reused: Sequence[Reuse] = ()
    """Of those among `started` that looked for a beginning."""
    drafts: Sequence[Drafts] = ()


class Found(Protocol):
    """A beginning of a prompt that was read before."""

    length: int
    """Tokens; less than the prompt has."""
    caches: list[Any]
    """Of one sequence, a layer each, as mlx-lm's `make_prompt_cache` makes them, holding exactly
    `length` tokens. The caller's own: what is kept stays as it is, whatever is written to them."""


class Prefixes(Protocol):
    """Beginnings of prompts, kept for later ones. Owned by the engine's thread; never raises but
    for want of memory.
    """

    trimmable: bool
    """Whether a part of what is kept serves; else only all of it, to the token."""

    def find(self, prompt: Prompt) -> Found | None:
        """The longest kept beginning that serves, at most all but the last token; it counts as
        used."""
        ...

    def reach(self, prompt: Prompt) -> int:
        """How long what `find` would give is; looks only."""
        ...

    def missed(self, prompt: Prompt) -> int:
        """As `Reuse.missed`."""
        ...

    def keep(self, prompt: Prompt, length: int, caches: list[Any], kind: Kind) -> None:
        """Keep that the first `length` of (tokens of the prompt and its answer so far) are read;
        `prompt.tokens` are these at least. Takes `caches` over: nobody else writes to them."""
        ...

    @property
    def nbytes(self) -> int:
        """Of all that is kept in memory."""
        ...

    @property
    def keeps(self) -> bool:
        """Whether there is any room to keep something."""
        ...

    def free(self, nbytes: int) -> None:
        """Keep so many bytes less, just now."""
        ...


Kind: TypeAlias = Literal["system", "turn", "prompt", "answer", "partial"]
"""What a kept beginning ends with: the system's turn and the tools; another turn; the last token
but one of a prompt; an answer; the middle of a prompt that was given up."""


class Engine(Protocol):
    """Continuous batching as four verbs."""

    def insert(self, prompts: Sequence[Prompt]) -> list[int]:
        """Queue sequences; returns their uids. Raises ValueError, and then queues none."""
        ...

    def remove(self, uids: Sequence[int]) -> None:
        """Forget sequences, at whatever stage; unknown ones are ignored."""
        ...

    def step(self) -> Step:
        """Decode one token for each running sequence, or prefill one chunk of those that wait."""
        ...

    def __len__(self) -> int:
        """How many sequences are queued or running."""
        ...
