"""A daemon's engine processes as the system shows them: who is there, since when, until when."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from mlxd.cli.admin import AdminClient, Refused
from mlxd.cli.client import NoAnswer
from mlxd.control.process import WORKER_OF
from mlxd.core import instance

Json = dict[str, Any]
_LOOK_SECONDS = 0.02
_ASK_SECONDS = 0.1
"""Between two questions for whom a process is."""


@dataclass
class Life:
    """One engine process. Times are monotonic."""

    pid: int
    model: str
    seen: float
    gone: float = float("inf")
    """When the daemon had reaped it."""


class Workers:
    """Looks at a daemon's children again and again, for the length of the block."""

    def __init__(self, daemon: int, state: Path) -> None:
        self.lives: list[Life] = []
        self._daemon = daemon
        self._state = state
        self._asked = 0.0
        self._alive: dict[int, Life] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Workers:
        self._note()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def of(self, model: str, since: float = 0.0) -> Life | None:
        """The one that is there, if it has come since then."""
        lives = [life for life in list(self._alive.values()) if life.model == model]
        return next((life for life in reversed(lives) if life.seen >= since), None)

    def after(self, life: Life) -> Life | None:
        """The one that took its place."""
        later = (one for one in self.lives if one.model == life.model and one.seen > life.seen)
        return next(later, None)

    def _look(self) -> None:
        while not self._over.wait(_LOOK_SECONDS):
            self._note()

    def _note(self) -> None:
        there, now = set(children(self._daemon)), time.monotonic()
        for pid in self._alive.keys() - there:
            self._alive.pop(pid).gone = now
        strange = there - self._alive.keys()
        if not strange or now - self._asked < _ASK_SECONDS:
            return
        self._asked = now
        models = models_of(self._state)
        for pid in strange & models.keys():
            self._alive[pid] = life = Life(pid, models[pid], now)
            self.lives.append(life)


def children(daemon: int) -> Iterator[int]:
    """Zombies too."""
    tasks = Path(f"/proc/{daemon}/task")
    try:
        for task in tasks.iterdir():
            yield from map(int, (task / "children").read_text().split())
    except FileNotFoundError:
        if not tasks.exists() or not (tasks / str(daemon) / "children").exists():
            yield from (child.pid for child in psutil.Process(daemon).children())


def models_of(state: Path) -> dict[int, str]:
    """The engine processes that have a model, as their daemon says; none where it does not."""
    found = instance.running(state)
    if found is None:
        return {}
    try:
        health = AdminClient(found.admin, 1.0).get("/admin/health")
    except (NoAnswer, Refused):
        return {}
    return {one["pid"]: one["model"] for one in health["workers"] if one["pid"]}


def engines_of(state: Path) -> Iterator[psutil.Process]:
    """Every engine process of a state folder's daemons, whoever its parent is."""
    mark = os.path.realpath(state)
    for process in psutil.process_iter():
        try:
            if "mlxd.worker" in process.cmdline() and process.environ().get(WORKER_OF) == mark:
                yield process
        except (psutil.Error, OSError):  # another user's, or gone
            continue


@dataclass(frozen=True)
class Residue:
    """What a daemon holds while nobody asks it for anything."""

    descriptors: int
    threads: int
    rss: int
    workers: int
    zombies: int
    strays: int
    """Engine processes of its state folder that are not its children."""
    folders: int
    """Private folders of engine processes."""

    @classmethod
    def of(cls, daemon: int, state: Path) -> Residue:
        process = psutil.Process(daemon)
        own = process.children()
        engines = {engine.pid for engine in engines_of(state)}
        models = models_of(state)
        temporary = state / "tmp"
        return cls(
            descriptors=process.num_fds(),
            threads=process.num_threads(),
            rss=process.memory_info().rss,
            workers=len([child for child in own if child.pid in models]),
            zombies=len([child for child in own if _is_zombie(child)]),
            strays=len(engines - {child.pid for child in own}),
            folders=len(list(temporary.glob("worker-*"))) if temporary.exists() else 0,
        )


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
