"""What goes between the threads: jobs and commands to the main one, its progress back."""

from __future__ import annotations

import queue
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from mlxd.core.request import GenerationRequest, Sampling
from mlxd.ipc.messages import (
    Budget,
    CacheAsk,
    CacheClear,
    Cancel,
    Memory,
    PrefixRules,
    Shutdown,
    Trim,
    Tuning,
    packed,
)
from mlxd.worker.engine import Constraint
from mlxd.worker.prefix.outline import Outline
from mlxd.worker.stops import StopStrings

if TYPE_CHECKING:
    from mlxd.worker.prefix.reader import Read
    from mlxd.worker.sampling import Guard

Grammar: TypeAlias = "Callable[[Guard, list[int]], Constraint]"
"""Makes what holds one sequence to its grammar, behind the tokens that its answer has already."""


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt that is to be told before its answer."""

    text: str
    skipped: int = 0
    """Its first tokens that are not of the text: the tokenizer put them there."""


@dataclass(frozen=True, slots=True)
class Job:
    """A request that is checked and in tokens; the engine can take it as it is."""

    id: int
    request: GenerationRequest
    sampling: Sampling
    tokens: list[int]
    """The prompt."""
    max_tokens: int
    """The least of what was asked, what policy allows and what the context leaves."""
    reasoning: bool
    """The prompt ends inside a think block."""
    stops: StopStrings
    grammar: Grammar | None = None
    may_think: bool = False
    """Its answer may open a think block, whatever it is held to."""
    expected_output: int = 1024
    """Tokens of the answer that memory is kept for at first."""
    wait_seconds: float = 300.0
    """How long it may wait for memory; 0: not at all."""
    earlier: list[int] = field(default_factory=list)
    """The answer's tokens so far, where another worker has begun it."""
    echo: Echo | None = None
    """None also where another worker has told it."""
    ids: bytes = b""
    """`tokens`, packed; empty: not done yet."""
    owner: str = ""
    outline: Outline = field(default_factory=Outline)
    """Where its prompt's turns begin."""
    received: float = 0.0
    """When the worker had it, as `clock.stamp` has it."""
    trace: str = ""
    """`Generate.trace`."""

    @property
    def packed(self) -> bytes:
        """Its prompt."""
        return self.ids or packed(self.tokens)

    @property
    def reads(self) -> bool:
        """Whether its prompt is read by itself first: for a vector, or to be scored."""
        scored = self.echo is not None and self.request.logprobs is not None
        return scored or self.request.want == "embedding"

    @property
    def left(self) -> int:
        """Tokens that the answer may still have; below 1 it has all."""
        return self.max_tokens - len(self.earlier)


@dataclass(frozen=True, slots=True)
class Fetched:
    """An entry that requests wait for came from the disk."""

    name: str
    read: Read | None
    """None: it did not come."""


Command = (
    Job | Cancel | Budget | Tuning | Trim | PrefixRules | Fetched | CacheAsk | CacheClear | Shutdown
)
Inbox = queue.SimpleQueue[list[Command]]


@dataclass(slots=True)
class Progress:
    """Where the main thread is; written by it, read by the others."""

    step: int = 0
    running: int = 0
    standing: bool = False
    """Another process has the turn to step; this one waits for it."""
    measure: Callable[[], Memory] = lambda: Memory(0, 0, 0)
    """What the engine holds; nothing before MLX is imported."""

    def stand(self, standing: bool) -> None:
        self.standing = standing
