"""What a daemon that was killed could not end: processes that its workers had started."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

from mlxd.control.process import WORKER_OF

log = logging.getLogger(__name__)


def end_leftovers(state: Path) -> None:
    """Kill every process that is, or descends from, a worker of a daemon with this state folder.

    The caller holds that folder and has started no worker.
    """
    for process in _of_workers(os.path.realpath(state)):
        log.warning("process %s, left by a daemon that is gone, is killed", process.pid)
        try:
            process.kill()
        except psutil.Error as error:
            log.warning("process %s cannot be killed: %s", process.pid, error)


def _of_workers(state: str) -> Iterator[psutil.Process]:
    """A worker is marked in its environment, and so is whatever it starts. A container's daemon may
    have a folder of the same path, and it is another one.
    """
    for process in psutil.process_iter():
        try:
            mark = process.environ().get(WORKER_OF)
        except (psutil.Error, OSError):  # another user's, or gone
            continue
        own = mark == state and process.pid != os.getpid()
        if own and _container(process.pid) == _container(os.getpid()):
            yield process


def _container(pid: int) -> str:
    """Its namespace of processes; empty where the system has none, or does not say."""
    with contextlib.suppress(OSError):
        return str(Path(f"/proc/{pid}/ns/pid").readlink())
    return ""
