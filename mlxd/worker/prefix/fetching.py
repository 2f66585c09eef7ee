"""Requests that wait for a beginning to be read from disk: it takes less than to compute it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from mlxd.worker.job import Fetched, Job

MOST_SECONDS = 5.0
"""For one entry; a disk that takes longer is not waited for."""


@dataclass(slots=True)
class _Fetch:
    """One entry on its way, and those who wait for it."""

    timer: threading.Timer
    """Gives it up."""
    jobs: list[Job]


class Fetching:
    """On the engine's thread. What another thread has read comes through the inbox."""

    def __init__(
        self, post: Callable[[Fetched], None], *, most_seconds: float = MOST_SECONDS
    ) -> None:
        """`post` puts into the inbox, from any thread."""
        self._post = post
        self._most = most_seconds
        self._fetches: dict[str, _Fetch] = {}

    def __len__(self) -> int:
        return sum(len(fetch.jobs) for fetch in self._fetches.values())

    def names(self) -> set[str]:
        """Of the entries that are on their way."""
        return set(self._fetches)

    def wait(self, job: Job, name: str) -> bool:
        """It waits for the entry of this name; whether it is the first, and that is to be read."""
        fetch = self._fetches.get(name)
        if fetch is not None:
            fetch.jobs.append(job)
            return False
        timer = threading.Timer(self._most, self._post, [Fetched(name, None)])
        timer.daemon = True
        timer.start()
        self._fetches[name] = _Fetch(timer, [job])
        return True

    def arrived(self, name: str) -> list[Job]:
        """Those who have waited for it, in the order in which they came."""
        fetch = self._fetches.pop(name, None)
        if fetch is None:
            return []
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
