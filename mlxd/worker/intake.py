"""The IO thread: takes messages off the socket, checks requests and turns them into jobs.

Nothing here touches MLX's streams; what could break the engine is refused here, so that it never
gets there.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlxd.ipc.messages import (
    Cancel,
    Down,
    Generate,
    Ping,
    Pong,
    Refused,
    Shutdown,
    decode_down,
)
from mlxd.worker.job import Command
from mlxd.worker.link import Link
from mlxd.worker.refusal import Refusal

if TYPE_CHECKING:
    from mlxd.worker.checks import Checks

EXIT_BROKEN = 70
"""EX_SOFTWARE: a defect; nothing this process says any more should be trusted."""
GATHER_SECONDS = 0.01
"""A busy engine waits no longer than this for requests that arrive together to be tokenised."""
LONGEST_REFUSAL = 1000

Inbox = queue.SimpleQueue[list[Command]]


@dataclass(slots=True)
class Progress:
    """Where the main thread is; written by it, read by the IO thread."""

    step: int = 0
    running: int = 0
    measure: Callable[[], int] = int
    """Bytes of engine memory in use; none before MLX is imported."""


class Intake:
    """Feeds the inbox. Until the model is loaded there are no `checks`, and no requests."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.inbox: Inbox = queue.SimpleQueue()
        self.progress = Progress()
        self.checks: Checks | None = None

    def start(self) -> None:
        threading.Thread(target=self._run, name="io", daemon=True).start()

    def _run(self) -> None:
        try:
            while True:
                self.inbox.put(self._gather())
        except Exception:  # noqa: BLE001 - a deaf worker would be worse than a dead one
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(EXIT_BROKEN)

    def _gather(self) -> list[Command]:
        """What arrives together, while it arrives, goes to the engine together."""
        commands: list[Command] = []
        until = float("inf")
        while not commands or (self._link.more() and time.monotonic() < until):
            for frame in self._link.receive():
                command = self._handle(decode_down(frame))
                if command is not None:
                    commands.append(command)
            until = min(until, time.monotonic() + GATHER_SECONDS)
        return commands

    def _handle(self, message: Down) -> Command | None:
        match message:
            case Generate():
                return self._check(message)
            case Cancel():
                return message
            case Ping():
                at = self.progress
                self._link.send(Pong(at.step, at.running, at.measure()))
                return None
            case Shutdown():
                if self.checks is None:
                    os._exit(0)
                return message

    def _check(self, generate: Generate) -> Command | None:
        """A job; or a refusal is sent. Whatever goes wrong here is answered here."""
        try:
            if self.checks is None:
                raise Refusal("the model is still loading")
            return self.checks.job_of(generate)
        except Refusal as refusal:
            self._refuse(generate.id, refusal)
        except Exception:  # noqa: BLE001 - tokenizers and templates are others' code
            traceback.print_exc()
            self._refuse(generate.id, Refusal("the request could not be prepared for this model"))
        return None

    def _refuse(self, id: int, refusal: Refusal) -> None:
        words = refusal.message[:LONGEST_REFUSAL]
        self._link.send(Refused(id, refusal.code, words, refusal.param))
