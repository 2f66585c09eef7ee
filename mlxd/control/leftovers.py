"""What a daemon that was killed could not end: processes that its workers had started."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import psutil

log = logging.getLogger(__name__)


def end_leftovers(temporary: Path) -> None:
    """Kill every process that works in a worker's private folder below `temporary`.

    The caller holds the state folder and has started no worker.
    """
    if not any(temporary.glob("worker-*")):
        return  # the last daemon came to its end
    for process in _of_workers(temporary):
        log.warning("process %s, left by a daemon that is gone, is killed", process.pid)
        try:
            process.kill()
        except psutil.Error as error:
            log.warning("process %s cannot be killed: %s", process.pid, error)


def _of_workers(temporary: Path) -> Iterator[psutil.Process]:
    """A worker's TMPDIR is its own, and whatever it starts has it too."""
    for process in psutil.process_iter():
        try:
            folder = process.environ().get("TMPDIR", "")
        except (psutil.Error, OSError):  # another user's, or gone
            continue
        if Path(folder).parent == temporary and Path(folder).name.startswith("worker-"):
            yield process
