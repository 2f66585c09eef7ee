"""What is done against full memory: the actions of a mark, by their names in policy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from mlxd.control.exit import Verdict
from mlxd.control.monitors import Engine
from mlxd.control.shedding import Strain
from mlxd.control.watermarks import Level, Mark
from mlxd.core.caller import PRIORITIES
from mlxd.core.errors import InsufficientMemory, MlxdError, PolicyLine
from mlxd.ipc import messages as ipc
from mlxd.telemetry.events import Events

EVICTING = frozenset({"evict_lru", "evict_all_idle"})
HOLDING = frozenset({"block_loads", "shed_low_priority", "stop_admission"})
"""Those that last until their mark is left."""
_WORDS = {
    "drop_mlx_cache": "unused buffers are freed, and less of earlier prompts is kept",
    "block_loads": "loads are blocked",
    "evict_lru": "idle models are dropped",
    "evict_all_idle": "every unprotected model is dropped",
    "shed_low_priority": "classes whose shed_at is reached are refused",
    "stop_admission": "no generation is admitted",
    "cancel_lowest_priority": "the newest generations of the lowest class are ended",
}


class GuardedWorker(Engine, Protocol):
    """A worker as it is seen from here."""

    @property
    def name(self) -> str: ...
    @property
    def pid(self) -> int: ...
    @property
    def budget(self) -> ipc.Budget | None: ...
    @property
    def lowest(self) -> tuple[int, float] | None:
        """Of its generations that go first: the class, as its place in PRIORITIES, and when the
        newest of that class began, on the monotonic clock; None: none runs.
        """
        ...

    def trim(self) -> None: ...
    def end_lowest(self, error: MlxdError) -> bool: ...
    def condemn(self, verdict: Verdict) -> None: ...


class Models(Protocol):
    """The residency as it is seen from here."""

    def lend(self, left: float) -> None:
        """Workers keep of earlier prompts what there is room for; of that, the part `left`."""
        ...

    def block_loads(self, why: MlxdError | None) -> None:
        """While set, every new load raises it; one for an answer whose worker died waits. Loads
        under way go on.
        """
        ...

    async def relieve(self, enough: Callable[[], bool], *, all: bool = False) -> list[str]:
        """Evict idle models until `enough()`, which is asked before each; returns their names."""
        ...

    def workers(self) -> Sequence[GuardedWorker]: ...


class Gate(Protocol):
    """Admission as it is seen from here."""

    def shut(self, error: MlxdError | None) -> None:
        """While set, every new generation raises it."""
        ...

    def strain(self, strain: Strain | None) -> None:
        """While set, new generations of the classes whose `shed_at` is reached are refused."""
        ...


class Counts(Protocol):
    """What is counted."""

    def memory_action(self, action: str) -> None: ...
    def evicted(self, reason: str, models: int = 1) -> None: ...


@dataclass(frozen=True, slots=True)
class Occasion:
    """Why an action is called for."""

    mark: Mark
    level: Level
    """The highest mark that holds."""
    share: float
    """Of memory in use."""
    words: str
    """Such as `memory is at 96.1 %, ...`."""
    line: PolicyLine
    retry_after: float
    """Seconds until memory is looked at again."""
    pressing: bool
    """Whether readings say so still, after all that was done before."""
    enough: Callable[[], bool]
    """Reads anew whether the mark could be left."""


class Measures:
    """Performs actions; remembers those that last."""

    def __init__(self, models: Models, gate: Gate, events: Events, counts: Counts) -> None:
        self._models = models
        self._gate = gate
        self._events = events
        self._counts = counts
        self._held: set[str] = set()

    @property
    def held(self) -> frozenset[str]:
        return frozenset(self._held)

    async def perform(self, action: str, occasion: Occasion) -> None:
        """One action. Those that last get the present numbers each time."""
        match action:
            case "drop_mlx_cache":
                self._trim()
            case "evict_lru":
                await self._evict(action, occasion, occasion.enough)
            case "evict_all_idle":
                await self._evict(action, occasion, lambda: False)
            case "cancel_lowest_priority":
                self._end_lowest(occasion)
            case _:
                self.hold(action, occasion)

    def hold(self, action: str, occasion: Occasion) -> None:
        """An action that lasts, at once; of the others nothing."""
        if action == "block_loads":
            self._models.block_loads(_refusal(f"no model is loaded {_until(occasion)}", occasion))
        elif action == "shed_low_priority":
            self._gate.strain(_strain(occasion))
        elif action == "stop_admission":
            self._gate.shut(_refusal(f"no generation is admitted {_until(occasion)}", occasion))
        else:
            return
        if action not in self._held:
            self._held.add(action)
            self._counts.memory_action(action)

    def follow(self, wanted: Iterable[str], level: Level) -> None:
        """Undo what lasts and is not `wanted` any more; workers keep what that leaves them of
        earlier prompts.
        """
        wanted = set(wanted)
        self._models.lend(_left(wanted, level))
        for action in self._held - wanted:
            if action == "block_loads":
                self._models.block_loads(None)
            elif action == "shed_low_priority":
                self._gate.strain(None)
            else:
                self._gate.shut(None)
            self._held.discard(action)

    def _trim(self) -> None:
        for worker in self._models.workers():
            worker.trim()
        self._counts.memory_action("drop_mlx_cache")

    async def _evict(self, action: str, occasion: Occasion, enough: Callable[[], bool]) -> None:
        names = await self._models.relieve(enough, all=action == "evict_all_idle")
        if not names:
            return
        self._counts.memory_action(action)
        self._counts.evicted("watermark", len(names))
        self._tell(f"{occasion.words}: dropped {', '.join(names)}", action, occasion, names)

    def _end_lowest(self, occasion: Occasion) -> None:
        """One generation, the newest of the lowest class: the next check sees what that brought."""
        if not occasion.pressing:
            return
        busy = [(lowest, w) for w in self._models.workers() if (lowest := w.lowest) is not None]
        error = _refusal("this answer was ended to free memory", occasion)
        if not busy:
            return
        (rank, _), worker = max(busy, key=lambda each: each[0])
        if not worker.end_lowest(error):
            return
        self._counts.memory_action("cancel_lowest_priority")
        whose = f"of class {PRIORITIES[rank]} of {worker.name}"
        words = f"{occasion.words}: the newest generation {whose} was ended"
        self._tell(words, "cancel_lowest_priority", occasion, [worker.name])

    def _tell(self, words: str, action: str, occasion: Occasion, models: list[str]) -> None:
        data = {"action": action, "mark": occasion.mark.level.word, "models": models}
        self._events.record("memory_action", words, data)


def in_words(actions: Iterable[str]) -> str:
    """Of those that do something, in their order."""
    return ", ".join(_WORDS[action] for action in actions if action in _WORDS)


def _left(wanted: set[str], level: Level) -> float:
    """Of what workers keep of earlier prompts: all of that goes before any model does."""
    if EVICTING & wanted:
        return 0.0
    if "drop_mlx_cache" in wanted:
        return 0.5 if level is Level.WARNING else 0.0
    return 1.0


def _until(occasion: Occasion) -> str:
    return f"until it is below {100 * occasion.mark.clear:g} %"


def _strain(occasion: Occasion) -> Strain:
    return Strain(occasion.level, occasion.share, occasion.words, occasion.retry_after)


def _refusal(what: str, occasion: Occasion) -> InsufficientMemory:
    clear = round(100 * occasion.mark.clear, 1)
    return InsufficientMemory(
        f"{occasion.words}: {what}",
        retry_after=occasion.retry_after,
        policy=occasion.line,
        numbers={"clear_percent": clear},
        would_pass=f"the same request once memory is below {clear:g} %",
    )
