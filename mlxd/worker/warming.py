"""System prompts that are read before anybody asks: while nobody asks for anything.

Each goes the way of a request, under a number below zero that means nothing to the daemon, and has
one token as its answer, which is nobody's. Whoever comes finds the engine free: one that is being
read goes back, and what was read of it is kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from mlxd.core.request import Sampling
from mlxd.ipc.messages import TOKEN_BYTES, Generate, WarmPrompt
from mlxd.worker.job import Job
from mlxd.worker.prefix.outline import Outline

_GREEDY = Sampling(temperature=0.0)


class Warming:
    """One at a time, each once."""

    def __init__(self, prepare: Callable[[Generate, int], None], context: int) -> None:
        """`prepare` has a request made into a job, which comes through the inbox."""
        self._prepare = prepare
        self._context = context
        self._waiting: deque[WarmPrompt] = deque()
        self._known: list[WarmPrompt] = []
        self._current: WarmPrompt | None = None
        self._id = 0
        """Of the present one, and of none twice."""

    @property
    def current(self) -> int | None:
        """The number of the one under way."""
        return self._id if self._current is not None else None

    def apply(self, wanted: Sequence[WarmPrompt]) -> None:
        """These are to be read, if they were not already."""
        new = [warm for warm in wanted if warm not in self._known]
        self._waiting = deque([warm for warm in self._waiting if warm in wanted] + new)
        self._known = list(wanted)

    def again(self) -> None:
        """What was kept is gone: all are to be read again."""
        self._waiting = deque(warm for warm in self._known if warm is not self._current)

    def begin(self) -> None:
        """Nobody asks for anything: have the next one prepared."""
        if self._current is None and self._waiting:
            self._current = self._waiting.popleft()
            self._id -= 1
            self._prepare(self._message(self._current), 0)

    def job(self, job: Job) -> Job | None:
        """Of one that is prepared, what is to be read; None: it is not wanted any more."""
        if job.id != self._id or self._current is None:
            return None
        size = job.outline.shared
        if not 0 < size < len(job.tokens):
            return replace(job, max_tokens=1)
        tokens = job.tokens[: size + 1]
        return replace(
            job,
            tokens=tokens,
            ids=job.packed[: len(tokens) * TOKEN_BYTES],
            outline=Outline((size,), size, ()),
            max_tokens=1,
        )

    def over(self, id: int) -> None:
        """It is read, or cannot be."""
        if id == self._id:
            self._current = None

    def put_off(self) -> None:
        """Somebody came: it is read later."""
        if self._current is not None:
            self._waiting.appendleft(self._current)
            self._current = None

    def _message(self, warm: WarmPrompt) -> Generate:
        request = replace(warm.request, max_tokens=1, stream=False)
        return Generate(
            id=self._id,
            request=request,
            sampling=_GREEDY,
            max_prompt=self._context,
            max_output=1,
            context=self._context,
            expected_output=1,
            wait_seconds=0.0,
        )
