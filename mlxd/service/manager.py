"""What systemd and launchd are both asked for."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class State:
    """The service, as its manager knows it."""

    loaded: bool = False
    """The manager knows it now."""
    enabled: bool = False
    """It will be started with the machine, or at the next login."""
    activity: str = ""
    """In the manager's own words: `active (running)`, `SIGTERMed`."""
    pid: int = 0
    """0: it does not run."""
    since: float | None = None
    """When it began or ended, in seconds since the epoch; None: the manager does not say."""
    last_exit: str = ""
    """Such as `exit 70` or `SIGKILL`; empty: it has not ended yet, or nobody remembers."""
    file: str = ""
    """Where the manager has it from."""

    @property
    def running(self) -> bool:
        return self.pid > 0


class Manager(Protocol):
    """One scope of one service manager. Everything raises ServiceError."""

    name: str
    names: tuple[str, ...]
    """Of the files that it starts from, rendered for these policies or not."""

    def state(self) -> State: ...

    def wanted(self, name: str) -> bool:
        """Whether a file that was rendered is of use to this version, on this machine."""
        ...

    def retire(self, names: Collection[str]) -> None:
        """Those files of ours are not used any more, and are still there."""
        ...

    def put(self, files: Collection[Path], changed: Collection[Path], *, now: bool) -> list[str]:
        """The files are there: have the service started from now on, and with `now` at once.

        `changed`: those that the manager may know otherwise, or that are gone. Returns what is left
        to say.
        """
        ...

    def end(self) -> None:
        """Stop the service, and start it no more. Its files are still there."""
        ...

    def forget(self) -> None:
        """Its files are gone."""
        ...
