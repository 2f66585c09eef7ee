"""The part of a daemon that holds and reloads policies, without ports, models or an engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from mlxd.core.clock import Clock
from mlxd.policy.boot import boot
from mlxd.policy.history import History, history_of
from mlxd.policy.load import Override
from mlxd.policy.outcome import Outcome
from mlxd.policy.policy_set import FILES
from mlxd.policy.reload import Reloader
from mlxd.policy.store import Applier, PolicyStore


class HastyClock:
    """Each look at it finds five seconds gone: a file that vanished is missed at once."""

    def __init__(self) -> None:
        self._now = 1000.0

    def monotonic(self) -> float:
        self._now += 5.0
        return self._now

    def wall(self) -> float:
        return 1_700_000_000.0 + self._now


@dataclass(frozen=True, slots=True)
class Holder:
    """What holds policies, and every outcome it told of."""

    folder: Path
    history: History
    store: PolicyStore
    reloader: Reloader
    told: list[Outcome]


@asynccontextmanager
async def holding(
    folder: Path,
    state: Path,
    clock: Clock,
    *appliers: Applier,
    overrides: Sequence[Override] = (),
) -> AsyncIterator[Holder]:
    """Boot from the folders, and begin. Raises PolicyErrors."""
    history = history_of(state)
    booted = boot(folder, overrides, history)
    store = booted.store
    reloader = Reloader(store, history, clock, booted, overrides=overrides)
    told: list[Outcome] = []
    reloader.use(*appliers)
    reloader.observe(told.append)
    await reloader.begin()
    try:
        yield Holder(folder, history, store, reloader, told)
    finally:
        await reloader.close()


def save(file: Path, text: str | bytes) -> None:
    """Whole, as an editor with a rename does it."""
    beside = file.with_name(f".{file.name}.edited")
    beside.write_bytes(text.encode() if isinstance(text, str) else text)
    beside.replace(file)


def save_all(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """These policy files, and no others."""
    folder.mkdir(exist_ok=True)
    for name in FILES:
        if name in files:
            save(folder / name, files[name])
        else:
            (folder / name).unlink(missing_ok=True)
