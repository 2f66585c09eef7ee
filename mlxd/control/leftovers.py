"""What a daemon that was killed could not end: processes that its workers had started."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

from mlxd.control.process import WORKER_OF, mark_of

log = logging.getLogger(__name__)


def end_leftovers(state: Path) -> None:
    """Kill every process that is, or descends from, a worker of a daemon with this state folder.

    The caller holds that folder and has started no worker.
    """
    for process in _of_workers(mark_of(state)):
        log.warning("process %s, left by a daemon that is gone, is killed", process.pid)
        try:
            process.kill()
        except psutil.Error as error:
            log.warning("process %s cannot be killed: %s", process.pid, error)


def _of_workers(mark: str) -> Iterator[psutil.Process]:
    """A worker is marked in its environment, and so is whatever it starts."""
    for process in psutil.process_iter():
        try:
            theirs = process.environ().get(WORKER_OF)
        except (psutil.Error, OSError):  # another user's, or gone
            continue
        if theirs == mark and process.pid != os.getpid():
            yield process
