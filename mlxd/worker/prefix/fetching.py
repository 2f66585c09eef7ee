"""Requests that wait for a beginning to be read from disk: it takes less than to compute it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from mlxd.worker.job import Fetched, Job
from mlxd.worker.prefix.reader import Read

MOST_SECONDS = 5.0
"""For one entry; a disk that takes longer is not waited for."""


@dataclass(slots=True)
class _Fetch:
    """One entry on its way, and those who wait for it."""

    jobs: list[Job] = field(default_factory=list)
    timer: threading.Timer | None = None


class Fetching:
    """On the engine's thread. What another thread has read comes through the inbox."""

    def __init__(
        self,
        read: Callable[[str, Callable[[Read | None], None]], None],
        post: Callable[[Fetched], None],
        *,
        most_seconds: float = MOST_SECONDS,
    ) -> None:
        """`read` is `Disk.read`; `post` puts into the inbox, from any thread."""
        self._read = read
        self._post = post
        self._most = most_seconds
        self._fetches: dict[str, _Fetch] = {}

    def __len__(self) -> int:
        return sum(len(fetch.jobs) for fetch in self._fetches.values())

    def wait(self, job: Job, name: str) -> None:
        """It waits for the entry of this name, with others who want the same."""
        fetch = self._fetches.get(name)
        if fetch is None:
            fetch = self._fetches[name] = _Fetch()
            self._read(name, lambda read: self._post(Fetched(name, read)))
            fetch.timer = threading.Timer(self._most, self._post, [Fetched(name, None)])
            fetch.timer.daemon = True
            fetch.timer.start()
        fetch.jobs.append(job)

    def arrived(self, name: str) -> list[Job]:
        """Those who have waited for it, in the order in which they came."""
        fetch = self._fetches.pop(name, None)
        if fetch is None:
            return []
        if fetch.timer is not None:
            fetch.timer.cancel()
        return fetch.jobs

    def leave(self, id: int) -> bool:
        """Whether it waited here; it no longer does."""
        for fetch in self._fetches.values():
            left = [job for job in fetch.jobs if job.id != id]
            if len(left) < len(fetch.jobs):
                fetch.jobs = left
                return True
        return False
