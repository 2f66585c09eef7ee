"""A policy folder, and what puts its files in force, without a daemon."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlxd.core.clock import SystemClock
from mlxd.policy.boot import boot
from mlxd.policy.history import History
from mlxd.policy.load import Override
from mlxd.policy.outcome import Outcome
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.reload import Reloader
from mlxd.policy.store import Applier, PolicyStore, Prepared, PrepareFailed
from tests.support.daemon import write_policies


@dataclass(slots=True)
class Ground:
    """A policy folder and a state folder, and a reloader over them once it is started."""

    folder: Path
    history: History
    told: list[Outcome]
    store: PolicyStore | None = None

    def write(self, **files: str) -> None:
        """Each file whole, below its schema line: `write(limits="...")`."""
        write_policies(self.folder, files)

    def start(
        self, *appliers: Applier, overrides: Sequence[Override] = (), folder: bool = True
    ) -> Reloader:
        booted = boot(self.folder if folder else None, overrides, self.history)
        self.store = booted.store
        reloader = Reloader(
            self.store, self.history, SystemClock(), booted,
            overrides=overrides, find_folder=lambda: self.folder if self.folder.is_dir() else None,
        )  # fmt: skip
        reloader.use(*appliers)
        reloader.observe(self.told.append)
        return reloader

    @property
    def current(self) -> PolicySet:
        assert self.store is not None
        return self.store.current

    @property
    def slots(self) -> int:
        return self.current.limits.concurrency.max_in_flight


class Breaks:
    """An applier that fails where it is told to: in prepare, as a defect there, or in commit."""

    def __init__(self, where: str) -> None:
        self._where = where

    async def prepare(self, old: PolicySet, new: PolicySet) -> Prepared:
        if self._where == "prepare":
            raise PrepareFailed("server.listen.port", "127.0.0.1:1 is taken by another")
        if self._where == "defect":
            raise ZeroDivisionError
        return self

    def commit(self) -> None:
        if self._where == "commit":
            raise ZeroDivisionError

    def undo(self) -> None:
        pass


def slots(number: object) -> str:
    return f"concurrency: {{max_in_flight: {number}}}\n"


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    folder = tmp_path / "policies"
    folder.mkdir()
    return Ground(folder, History(tmp_path / "state" / "lkg"), [])
