"""A thread that sends spans away, so that no request waits for whoever receives them."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from mlxd.telemetry.spans import Span

log = logging.getLogger(__name__)

MOST_WAITING = 4096
"""Spans that wait to be sent; more of them are dropped."""
MOST_SENT = 512
"""About so many at one time: the trees of requests are not taken apart."""
GATHER_SECONDS = 1.0
"""How long one waits at most for others to be sent with it."""
LAST_SECONDS = 1.0
"""For what is waiting at the end; a receiver may hang."""


class Unsendable(Exception):
    """Why no spans can be sent now, in words that hold no secret."""

    final = False
    """Another attempt is in vain."""


class NotInstalled(Unsendable):
    """What sends them is no part of this installation."""

    final = True


class Exporter(Protocol):
    """Says spans to one receiver."""

    def export(self, spans: Sequence[Span]) -> bool:
        """Whether they were taken. May wait for seconds."""
        ...

    def close(self) -> None: ...


@dataclass(slots=True)
class Counts:
    """What became of spans."""

    sent: int = 0
    failed: int = 0
    """Not taken by the receiver, or not said to it."""
    dropped: int = 0
    """Too many were waiting, or nothing is installed that could send them."""


class SpanSink:
    """Sends to one receiver, until it is finished. That one fails is told in the log once, and once
    that it works again; what it did not take is not sent again.
    """

    def __init__(self, open_exporter: Callable[[], Exporter]) -> None:
        """`open_exporter` is called in the thread, at once and after each failure; it may wait.
        What it raises but Unsendable, and what an exporter raises, is told by its name alone: its
        words may hold a secret.
        """
        self.counts = Counts()
        self.impossible = ""
        """Why none will ever be sent; empty: they may be."""
        self.failure = ""
        """Why the last ones were not; empty: they were."""
        self._open = open_exporter
        self._exporter: Exporter | None = None
        self._changed = threading.Condition()
        self._trees: deque[Sequence[Span]] = deque()
        self._waiting = 0
        self._finishing = False
        self._thread: threading.Thread | None = None
        self._begin()

    @property
    def over(self) -> bool:
        """All is sent that ever will be."""
        return self._thread is None or not self._thread.is_alive()

    def put(self, tree: Sequence[Span]) -> None:
        """Those of one request. Waits for nobody."""
        self._begin()
        with self._changed:
            full = self._waiting + len(tree) > MOST_WAITING
            if full or self._finishing or self.impossible:
                self.counts.dropped += len(tree)
                return
            self._trees.append(tree)
            self._waiting += len(tree)
            if self._waiting == len(tree) or self._waiting >= MOST_SENT:
                self._changed.notify()

    def finish(self) -> None:
        """Send what is waiting, if that is taken at once, and nothing more; waits for nothing."""
        with self._changed:
            self._finishing = True
            self._changed.notify()

    def close(self, seconds: float = LAST_SECONDS) -> None:
        """As `finish`, and wait for that, not for ever."""
        self.finish()
        if self._thread is not None:
            self._thread.join(seconds)

    def _begin(self) -> None:
        """Where the system has no thread, it is asked again with the next ones."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="spans", daemon=True)
            with contextlib.suppress(RuntimeError):
                thread.start()
                self._thread = thread

    def _run(self) -> None:
        try:
            self._is_open()
            while not self.impossible and (batch := self._next()) is not None:
                self._send(batch)
                if self.failure and self._finishing:
                    break
        finally:
            self._drop_the_rest()
            self._leave()

    def _next(self) -> list[Span] | None:
        """None: it is finished, and there is nothing left."""
        with self._changed:
            self._changed.wait_for(lambda: self._trees or self._finishing)
            self._changed.wait_for(
                lambda: self._waiting >= MOST_SENT or self._finishing, GATHER_SECONDS
            )
            batch: list[Span] = []
            while self._trees and len(batch) < MOST_SENT:
                batch += self._trees.popleft()
            self._waiting -= len(batch)
            return batch or None

    def _is_open(self) -> Exporter | None:
        """None: it cannot be, now or ever."""
        try:
            self._exporter = self._exporter or self._open()
        except Unsendable as error:
            self._tell(str(error))
            with self._changed:
                self.impossible = str(error) if error.final else ""
        except Exception as error:  # noqa: BLE001 - packages of others; one thread sends all
            self._tell(f"what sends them cannot be made ({type(error).__name__})")
        return self._exporter

    def _send(self, batch: Sequence[Span]) -> None:
        exporter = self._is_open()
        failure = _failure(exporter, batch) if exporter is not None else ""
        if exporter is not None and not failure:
            self.counts.sent += len(batch)
            self._tell("")
            return
        self.counts.failed += len(batch)
        if exporter is not None:
            self._leave()
            self._tell(failure)

    def _leave(self) -> None:
        exporter, self._exporter = self._exporter, None
        if exporter is not None:
            with contextlib.suppress(Exception):
                exporter.close()

    def _tell(self, failure: str) -> None:
        """Once when it begins to fail, once when it works again."""
        if failure and not self.failure:
            log.warning("traces are not sent: %s", failure)
        elif self.failure and not failure:
            log.info("traces are sent again")
        self.failure = failure

    def _drop_the_rest(self) -> None:
        with self._changed:
            self._finishing = True
            self.counts.dropped += self._waiting
            self._waiting = 0
            self._trees.clear()


def _failure(exporter: Exporter, batch: Sequence[Span]) -> str:
    """Why they were not taken; empty: they were."""
    try:
        taken = exporter.export(batch)
    except Exception as error:  # noqa: BLE001 - packages of others; one thread sends all
        return f"what sends them failed ({type(error).__name__})"
    return "" if taken else "the receiver cannot be reached, or does not take them"
