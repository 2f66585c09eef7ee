"""The machine that a test sees: so much of its memory in use, so many models in it, no process."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from mlxd.control.exit import Verdict
from mlxd.control.memory import MemoryReading
from mlxd.core.errors import MlxdError
from mlxd.ipc import messages as ipc

T = TypeVar("T")
State = Literal["active", "idle", "recent"]
"""In use; unused for long; unused, and not for as long as memory.eviction.protect_recent."""
_TOTAL = 10**12


@dataclass(frozen=True, slots=True)
class Requests:
    """All that run, as one worker does: `end` ends the newest of the lowest class, `first` says
    which class that is, as its place in PRIORITIES, and when it began.
    """

    first: Callable[[], tuple[int, float] | None]
    end: Callable[[], bool]
    name: str = "some-model"
    pid: int = 0
    budget: ipc.Budget | None = None
    ready: ipc.Ready | None = None
    memory: ipc.Memory = ipc.Memory(0, 0, 0)  # noqa: RUF009  frozen

    @property
    def lowest(self) -> tuple[int, float] | None:
        return self.first()

    def end_lowest(self, error: MlxdError) -> bool:
        return self.end()

    def trim(self) -> None:
        """It keeps no buffers."""

    def condemn(self, verdict: Verdict) -> None:
        """There is no process."""


class Machine:
    """What the guard reads, and what it has done to models."""

    def __init__(self, requests: Requests, keep: Callable[[], int]) -> None:
        """`keep`: memory.eviction.keep, as it is in force."""
        self.used = 0.0
        self.frees = 0.0
        """Share of memory that each evicted model gives back."""
        self.models: dict[str, State] = {}
        """The least recently used first."""
        self.loads_blocked = False
        self._evicted: list[str] = []
        self._requests = requests
        self._keep = keep

    def hold(self, models: Mapping[str, State]) -> None:
        """These are in memory, and no others."""
        self.models = dict(models)

    def evicted(self) -> list[str]:
        """Since this was last asked."""
        evicted, self._evicted = self._evicted, []
        return evicted

    def read(self) -> MemoryReading:
        return MemoryReading(_TOTAL, round(_TOTAL * (1.0 - self.used)))

    # -- what the guard calls

    def workers(self) -> list[Requests]:
        return [self._requests]

    def lend(self, left: float) -> None:
        """No worker keeps anything."""

    def block_loads(self, why: MlxdError | None) -> None:
        self.loads_blocked = why is not None

    async def relieve(self, enough: Callable[[], bool], *, all: bool = False) -> list[str]:
        gone = []
        for name in [name for name, state in self.models.items() if state == "idle"]:
            if enough() or (not all and len(self.models) <= self._keep()):
                break
            del self.models[name]
            self.used = max(0.0, self.used - self.frees)
            gone.append(name)
        self._evicted += gone
        return gone


class Uncounted:
    """A test scrapes no metrics."""

    def memory_action(self, action: str) -> None:
        """Nobody asks."""

    def evicted(self, reason: str, models: int = 1) -> None:
        """Nobody asks."""


def finished(work: Coroutine[Any, Any, T]) -> T:
    """The result of what never has to wait: nothing here takes time."""
    try:
        work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    work.close()
    raise AssertionError("a simulated machine waits for nothing")
