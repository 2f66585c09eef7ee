"""A daemon's engine processes as the system shows them: who is there, since when, until when."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from mlxd.ipc.messages import launch_of

Json = dict[str, Any]
_LOOK_SECONDS = 0.02


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

    def __init__(self, daemon: int) -> None:
        self.lives: list[Life] = []
        self._daemon = daemon
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
        for pid in there - self._alive.keys():
            if model := model_of(pid):
                self._alive[pid] = life = Life(pid, model, now)
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


def model_of(pid: int) -> str:
    """The name of its model's folder; empty for what is no engine process, or none yet."""
    folder = _folder_of(pid)
    return folder.name if folder is not None else ""


def _folder_of(pid: int) -> Path | None:
    try:
        command = psutil.Process(pid).cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return None
    if "mlxd.worker" not in command or "--spec" not in command:
        return None
    return Path(launch_of(command[command.index("--spec") + 1]).path)


@dataclass(frozen=True)
class Residue:
    """What a daemon holds while nobody asks it for anything."""

    descriptors: int
    threads: int
    rss: int
    workers: int
    zombies: int
    strays: int
    """Engine processes of its models that are not its children."""
    folders: int
    """Private folders of engine processes."""

    @classmethod
    def of(cls, daemon: int, state: Path, models: Path) -> Residue:
        process = psutil.Process(daemon)
        own = process.children()
        engines = {p for p in psutil.pids() if _within(_folder_of(p), models)}
        temporary = state / "tmp"
        return cls(
            descriptors=process.num_fds(),
            threads=process.num_threads(),
            rss=process.memory_info().rss,
            workers=len([child for child in own if model_of(child.pid)]),
            zombies=len([child for child in own if _is_zombie(child)]),
            strays=len(engines - {child.pid for child in own}),
            folders=len(list(temporary.glob("worker-*"))) if temporary.exists() else 0,
        )


def _within(folder: Path | None, models: Path) -> bool:
    return folder is not None and models.resolve() in folder.resolve().parents


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
