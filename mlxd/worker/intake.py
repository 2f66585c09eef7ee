"""The IO thread: takes messages off the socket and does nothing that lasts.

So cancels and pings are answered, and the daemon's end is noticed, whatever the other threads do.
"""

from __future__ import annotations

import os
import queue
import time

from mlxd.core.clock import stamp
from mlxd.ipc.messages import (
    Budget,
    CacheAsk,
    CacheClear,
    Cancel,
    Cancelled,
    Down,
    Generate,
    Launch,
    Output,
    Ping,
    Pong,
    PrefixRules,
    Shutdown,
    Trim,
    Tuning,
    decode_down,
)
from mlxd.worker.job import Inbox, Progress
from mlxd.worker.link import Link
from mlxd.worker.preparation import Preparation
from mlxd.worker.threads import run_forever


class Intake:
    """Feeds the preparation and the inbox. Until the model is loaded no request is served."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.inbox: Inbox = queue.SimpleQueue()
        self.launches: queue.SimpleQueue[tuple[Launch, float]] = queue.SimpleQueue()
        """The only one, once it has come, and when that was on the monotonic clock."""
        self.progress = Progress()
        self.preparation = Preparation(link, self.inbox, self.progress)

    def start(self) -> None:
        self.preparation.start()
        run_forever("io", self._turn)

    def _turn(self) -> None:
        for frame in self._link.receive():
            self.handle(decode_down(frame), len(frame))

    def handle(self, message: Down, size: int) -> None:
        """`size`: the bytes of its frame."""
        match message:
            case Launch():
                self.launches.put((message, time.monotonic()))
            case Generate():
                self.preparation.add(message, size)
            case Cancel():
                self._cancel(message)
            case Budget() | Tuning() | Trim() | PrefixRules() | CacheAsk() | CacheClear():
                self.inbox.put([message])
            case Ping():
                if not self.preparation.held:  # else nobody but a new worker can help
                    self._pong()
            case Shutdown():
                if self.preparation.checks is None:
                    os._exit(0)
                self.inbox.put([message])

    def _pong(self) -> None:
        """Who waits for a turn that another process has is well, and says so."""
        at = self.progress
        if at.standing:
            self._link.send(Output(at.step, []))
        self._link.send(Pong(at.step, 0 if at.standing else at.running, at.measure()))

    def _cancel(self, cancel: Cancel) -> None:
        """What the engine has not seen is cancelled here, without a word to the main thread."""
        if self.preparation.claim(cancel.id):
            self._link.send(Output(self.progress.step, [Cancelled(cancel.id, stamp())]))
        else:
            self.inbox.put([cancel])
