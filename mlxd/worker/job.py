"""What the IO thread hands to the main thread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from mlxd.core.request import GenerationRequest, Sampling
from mlxd.ipc.messages import Cancel, Shutdown
from mlxd.worker.engine import Processor

Grammar: TypeAlias = Callable[[], Processor]
"""Makes the processor that holds one sequence to its grammar."""


@dataclass(frozen=True, slots=True)
class Job:
    """A request that is checked and in tokens; the engine can take it as it is."""

    id: int
    request: GenerationRequest
    sampling: Sampling
    tokens: list[int]
    max_tokens: int
    """The least of what was asked, what policy allows and what the context leaves."""
    reasoning: bool
    """The prompt ends inside a think block."""
    grammar: Grammar | None = None


Command = Job | Cancel | Shutdown
