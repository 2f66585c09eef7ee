"""The preparation thread: requests become jobs here, in the order in which they came.

Templates, tokenising, checks, grammars: all that may last and needs no engine. A request that wants
its prompt alone is answered here. Nothing here touches MLX's streams; what could break the engine
is refused here, so that it never gets there. A request with a template of its client's comes here
once that is rendered, on a thread beside: it may take all the time that one may, and holds nobody.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from mlxd.core.clock import stamp
from mlxd.core.traces import print_trace
from mlxd.ipc.messages import (
    Accepted,
    Cancel,
    Ended,
    Generate,
    Noted,
    Output,
    Refused,
    Text,
    packed,
)
from mlxd.worker.job import Inbox, Job, Progress
from mlxd.worker.link import Link
from mlxd.worker.panic import is_panic
from mlxd.worker.refusal import Refusal
from mlxd.worker.threads import run_forever

if TYPE_CHECKING:
    from mlxd.worker.checks import Checks

GATHER_SECONDS = 0.01
"""A job waits about this long for others that came with it to be prepared."""
LULL_SECONDS = 0.002
"""An idle engine waits this long after a request for another: they share one prefill."""
LARGE_BYTES = 1 << 15
"""A larger request takes longer than GATHER_SECONDS to prepare: no job waits for it."""
LONGEST_REFUSAL = 1000
HELD_SECONDS = 30.0
"""Preparing one request takes no longer: a model's own template, say, need not come to an end."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Entry:
    generate: Generate
    size: int
    received: float
    written: str | None = None
    """What its client's template has made of it; None: it has none."""


class Preparation:
    """Turns requests into jobs and hands them to the main thread.

    In order; those that want their prompt alone come when there are no others.

    A request is open until it is handed on, refused or cancelled. Whoever claims it ends it, so
    that it is ended once.
    """

    def __init__(self, link: Link, inbox: Inbox, progress: Progress) -> None:
        self._link = link
        self._inbox = inbox
        self._progress = progress
        self._changed = threading.Condition()
        self._queue: deque[_Entry] = deque()
        self._prompts: deque[_Entry] = deque()
        """Those that want their prompt alone: whoever wants an answer is before them."""
        self._open: set[int] = set()
        self._templates: queue.SimpleQueue[_Entry] = queue.SimpleQueue()
        """Those that wait for a template of their client's to be rendered."""
        self._taken: float | None = None
        """When the request that is being prepared was taken, on the monotonic clock."""
        self.checks: Checks | None = None
        """None until the model is loaded."""

    @property
    def held(self) -> bool:
        """Whether something does not come to an end here."""
        taken = self._taken
        return taken is not None and time.monotonic() - taken > HELD_SECONDS

    def start(self) -> None:
        run_forever("preparation", self.turn)
        run_forever("templates", self.template_turn)

    def add(self, generate: Generate, size: int) -> None:
        """Queue a request; `size` tells roughly how long it will take."""
        with self._changed:
            self._open.add(generate.id)
        entry, request = _Entry(generate, size, stamp()), generate.request
        if request.template and request.messages is not None and generate.resume is None:
            self._templates.put(entry)
        else:
            self._queue_up(entry)

    def _queue_up(self, entry: _Entry) -> None:
        with self._changed:
            alone = entry.generate.request.want == "prompt"
            (self._prompts if alone else self._queue).append(entry)
            self._changed.notify()

    def template_turn(self) -> None:
        """Wait for a request with a template of its client's, and render that."""
        entry = self._templates.get()
        written = self._guarded(entry.generate, lambda checks: checks.written(entry.generate))
        if written is not None:
            self._queue_up(replace(entry, written=written))

    def claim(self, id: int) -> bool:
        """Whether the request was open; it no longer is, and nobody else will say how it ended."""
        with self._changed:
            was_open = id in self._open
            self._open.discard(id)
            return was_open

    def turn(self) -> None:
        """Wait for a request, and hand on what arrives together with it together."""
        jobs: list[Job] = []
        entry: _Entry | None = self._first()
        began = time.monotonic()
        while entry is not None:
            taken = time.monotonic()
            self._taken = taken
            job = self._prepare(entry)
            self._taken = None
            if job is not None:
                jobs.append(job)
            entry = self._another(began, taken)
        self._hand_on(jobs)

    def _first(self) -> _Entry:
        with self._changed:
            while not self._queue and not self._prompts:
                self._changed.wait()
            return (self._queue or self._prompts).popleft()

    def _another(self, began: float, taken: float) -> _Entry | None:
        """One that may travel with those prepared since `began`, the last one taken at `taken`."""
        until = min(taken + LULL_SECONDS, began + GATHER_SECONDS)
        with self._changed:
            while not self._queue:
                left = until - time.monotonic()
                if left <= 0 or self._progress.running:
                    return None
                self._changed.wait(left)
            late = time.monotonic() >= began + GATHER_SECONDS
            if late or self._queue[0].size > LARGE_BYTES:
                return None
            return self._queue.popleft()

    def _hand_on(self, jobs: list[Job]) -> None:
        """Under the lock: a cancel is seen here, or comes to the inbox after its job."""
        with self._changed:
            wanted = [job for job in jobs if job.id in self._open]
            self._open.difference_update(job.id for job in wanted)
            if wanted:
                self._inbox.put(list(wanted))

    def _prepare(self, entry: _Entry) -> Job | None:
        """A job; or its answer is sent, or it is refused."""
        generate, written = entry.generate, entry.written
        if generate.request.want != "prompt":
            job = self._guarded(generate, lambda checks: checks.job_of(generate, written))
            return replace(job, received=entry.received) if job is not None else None
        told = self._guarded(generate, lambda checks: checks.prompt_of(generate, written))
        if told is not None:
            self._tell(entry, *told)
        return None

    def _guarded(self, generate: Generate, work: Callable[[Checks], T]) -> T | None:
        """None where it is not open any more, or refused: whatever goes wrong is answered here."""
        if generate.id not in self._open:
            return None
        try:
            if self.checks is None:
                raise Refusal("the model is still loading")
            return work(self.checks)
        except Refusal as refusal:
            self._refuse(generate.id, refusal)
        except BaseException as error:  # tokenizers and templates are others' code
            if not isinstance(error, Exception) and not is_panic(error):
                raise
            print_trace(error, generate.trace)
            self._refuse(generate.id, Refusal("the request could not be prepared for this model"))
        return None

    def _tell(self, entry: _Entry, text: str, tokens: list[int]) -> None:
        """In one message behind its acceptance: who must ask another worker asks for all of it."""
        id, count = entry.generate.id, len(tokens)
        if self.claim(id):
            ended = Ended(id, "stop", count, 0, 0, 0.0, 0.0, at=stamp())
            received, prompt = entry.received, packed(tokens)
            self._link.send(Accepted(id, count, prompt=prompt, received=received, at=ended.at))
            self._link.send(Output(self._progress.step, [Text(id, text), ended]))

    def _refuse(self, id: int, refusal: Refusal) -> None:
        if not self.claim(id):
            return
        if id < 0:  # nobody has asked for it
            self._inbox.put([Cancel(id)])
            self._link.send(Noted("a prompt of its prefixes.warm is none that it can read"))
        else:
            words = refusal.message[:LONGEST_REFUSAL]
            refused = Refused(
                id, refusal.code, words, refusal.param, refusal.policy_key, numbers=refusal.numbers
            )
            self._link.send(refused)
