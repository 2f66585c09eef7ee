"""A thousand reloads in one process: what do they leave behind?

python tests/support/policy_reloads.py RELOADS SCRATCH

prints one JSON object (`Residue`). A process of its own, because it weighs itself.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[2]))

import psutil

from mlxd.control.admission import Admission
from mlxd.control.catalog import Catalog
from mlxd.control.memory import read_memory
from mlxd.control.prefixes import PrefixWishes
from mlxd.control.preload import Preloader
from mlxd.control.residency import Residency
from mlxd.control.supervisor import Supervisor
from mlxd.core.clock import SystemClock
from mlxd.policy import settle
from mlxd.policy.load import load
from mlxd.policy.store import Live
from mlxd.telemetry.metrics import Metrics
from tests.support.policy_daemon import Holder, holding, save, save_all
from tests.support.policy_mutations import shipped

WARM_UP = 200
_VALUES = (b"max_in_flight: 5 ", b"max_in_flight: 6 ")
_WINDOWS = (b"window: 60s", b"window: 61s")


@dataclass(frozen=True)
class Residue:
    """After all reloads, against after those that warm up."""

    reloads: int
    applied: int
    rss_growth: int
    """Bytes."""
    rss_growth_of_halves: tuple[int, int]
    """The same of the first half of the reloads and of the second one: a leak shows in both."""
    objects_growth: int
    """Objects that the garbage collector knows."""
    descriptors_growth: int
    threads_growth: int
    generations_alive: int
    history_files: int
    seconds: float


@dataclass(frozen=True)
class _Weight:
    rss: int
    objects: int
    descriptors: int
    threads: int


def residue(
    reloads: int, scratch: Path, progress: Callable[[int], None] = lambda done: None
) -> Residue:
    """Of reloads that each change a limit, a rate rule and a file's text."""
    with patch.object(settle, "_STEP_SECONDS", 0.0):
        return asyncio.run(_residue(reloads, scratch, progress))


async def _residue(reloads: int, scratch: Path, progress: Callable[[int], None]) -> Residue:
    clock = SystemClock()
    save_all(scratch / "policies", {**shipped(), "models.yaml": _no_models(scratch)})
    admission, catalog = Admission(clock), Catalog(scratch, clock)
    prefixes = PrefixWishes(scratch, load())
    supervisor = Supervisor(clock, scratch, load(), counts=Metrics(), prefixes=prefixes)
    residency = Residency(supervisor, clock, read_memory)
    preloader = Preloader(catalog, residency)
    appliers = [
        Live(admission.apply), Live(catalog.apply),
        Live(residency.apply), Live(preloader.apply),
    ]  # fmt: skip
    try:
        async with holding(scratch / "policies", scratch / "state", clock, *appliers) as holder:
            return await _weighed(holder, reloads, progress)
    finally:
        await preloader.close()
        await residency.close(0.0)


async def _weighed(holder: Holder, reloads: int, progress: Callable[[int], None]) -> Residue:
    for number in range(1, WARM_UP + 1):
        await _reload(holder, number)
    before, began = _weight(), time.monotonic()
    between = before
    for done in range(1, reloads + 1):
        await _reload(holder, WARM_UP + done)
        if done == reloads // 2:
            between = _weight()
        progress(done)
    seconds, after = time.monotonic() - began, _weight()
    return Residue(
        reloads=reloads,
        applied=holder.store.current.generation - 1 - WARM_UP,
        rss_growth=after.rss - before.rss,
        rss_growth_of_halves=(between.rss - before.rss, after.rss - between.rss),
        objects_growth=after.objects - before.objects,
        descriptors_growth=after.descriptors - before.descriptors,
        threads_growth=after.threads - before.threads,
        generations_alive=holder.store.generations_alive,
        history_files=len(list(holder.history.folder.iterdir())),
        seconds=seconds,
    )


async def _reload(holder: Holder, number: int) -> None:
    """One more edit, put in force."""
    turn = number % 2
    text = shipped()["limits.yaml"].replace(_VALUES[0], _VALUES[turn])
    text = text.replace(_WINDOWS[0], _WINDOWS[turn])
    save(holder.folder / "limits.yaml", b"%s# edit %d\n" % (text, number))
    outcome = await holder.reloader.reload("admin")
    if outcome.result != "applied":
        raise RuntimeError(f"edit {number}: {outcome}")
    holder.told.clear()


def _weight() -> _Weight:
    gc.collect()
    process = psutil.Process()
    return _Weight(
        process.memory_info().rss, len(gc.get_objects()), process.num_fds(), process.num_threads()
    )


def _no_models(scratch: Path) -> bytes:
    (scratch / "models").mkdir(exist_ok=True)
    return f"schema: mlxd/v1\ndirs: [{scratch / 'models'}]\n".encode()


def read_residue(text: str) -> Residue:
    """From what this program printed."""
    said = json.loads(text)
    return Residue(**{**said, "rss_growth_of_halves": tuple(said["rss_growth_of_halves"])})


def main(reloads: str, scratch: str) -> None:
    sys.stdout.write(json.dumps(asdict(residue(int(reloads), Path(scratch)))) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
