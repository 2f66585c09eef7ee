"""Many reloads leave nothing behind; many edits make few reloads, and none is lost (R5, R6, R8)."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from pathlib import Path

import pytest

from mlxd.core.clock import SystemClock
from mlxd.policy.history import KEPT
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.store import Live, Prepared
from tests.support import policy_reloads
from tests.support.policy_daemon import HastyClock, holding, save, save_all
from tests.support.policy_reloads import Residue, read_residue

RELOADS = 150
"""benchmarks/policy_sweeps.py makes a thousand."""
EDITS = 100


def limits(slots: object) -> str:
    return f"schema: mlxd/v1\nconcurrency: {{max_in_flight: {slots}}}\n"


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A policy folder with one file in it, and a state folder."""
    save_all(tmp_path / "policies", {"limits.yaml": limits(1)})
    return tmp_path / "policies", tmp_path / "state"


@pytest.fixture(scope="module")
def residue(tmp_path_factory: pytest.TempPathFactory) -> Residue:
    """Weighed in a process that does nothing else."""
    scratch = tmp_path_factory.mktemp("reloads")
    command = [sys.executable, policy_reloads.__file__, str(RELOADS), str(scratch)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return read_residue(done.stdout)


@pytest.mark.slow
def test_many_reloads_take_no_memory_and_no_descriptors(residue: Residue) -> None:
    assert residue.applied == RELOADS
    assert 2 * min(residue.rss_growth_of_halves) < 1_000_000
    assert residue.objects_growth < RELOADS
    assert residue.descriptors_growth == 0
    assert residue.threads_growth <= 1  # one may be on its way out


@pytest.mark.slow
def test_after_many_reloads_one_generation_is_alive(residue: Residue) -> None:
    assert residue.generations_alive == 1


@pytest.mark.slow
def test_the_history_forgets_all_but_the_last_generations(residue: Residue) -> None:
    assert residue.history_files == KEPT


async def test_a_generation_lives_as_long_as_a_request_that_holds_it(
    folders: tuple[Path, Path],
) -> None:
    async with holding(*folders, HastyClock()) as holder:
        save(folders[0] / "limits.yaml", limits(2))
        await holder.reloader.reload("admin")
        alive = holder.store.generations_alive
        held: PolicySet | None = holder.store.current
        save(folders[0] / "limits.yaml", limits(3))
        await holder.reloader.reload("admin")

        gc.collect()
        assert held is not None
        assert (held.generation, held.limits.concurrency.max_in_flight) == (2, 2)
        assert holder.store.generations_alive == alive + 1
        held = None
        gc.collect()
        assert holder.store.generations_alive == alive


class Gate:
    """An applier at which attempts wait until it is opened."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()

    async def prepare(self, old: PolicySet, new: PolicySet) -> Prepared:
        self.reached.set()
        await self.opened.wait()
        return await Live(lambda policies: None).prepare(old, new)


async def test_a_burst_of_edits_during_a_reload_makes_few_reloads_and_the_last_one_wins(
    folders: tuple[Path, Path],
) -> None:
    gate = Gate()
    async with holding(*folders, SystemClock(), gate) as holder:
        save(folders[0] / "limits.yaml", limits(2))
        looks = [asyncio.create_task(holder.reloader.look())]
        await gate.reached.wait()
        for edit in range(EDITS):
            save(folders[0] / "limits.yaml", limits(1000 + edit))
            looks.append(asyncio.create_task(holder.reloader.look()))
        gate.opened.set()
        await asyncio.gather(*looks)

        assert holder.store.current.limits.concurrency.max_in_flight == 1000 + EDITS - 1
        assert [outcome.result for outcome in holder.told[1:]] == ["applied"] * 2
        assert await holder.reloader.look() is None, "the last of them is in force"


async def test_looking_all_the_time_while_a_file_is_edited_makes_few_reloads(
    folders: tuple[Path, Path],
) -> None:
    def edit() -> None:
        for number in range(EDITS):
            save(folders[0] / "limits.yaml", limits(1000 + number))

    async with holding(*folders, SystemClock()) as holder:
        editing = asyncio.create_task(asyncio.to_thread(edit))
        while not editing.done():
            await holder.reloader.look()
        await holder.reloader.look()

        assert holder.store.current.limits.concurrency.max_in_flight == 1000 + EDITS - 1
        assert 1 <= len(holder.told) - 1 <= 5


async def test_many_who_ask_at_once_each_get_an_outcome_of_their_own(
    folders: tuple[Path, Path],
) -> None:
    async with holding(*folders, HastyClock()) as holder:
        save(folders[0] / "limits.yaml", limits(2))
        outcomes = await asyncio.gather(*(holder.reloader.reload("admin") for _ in range(10)))

        assert sorted(outcome.result for outcome in outcomes) == ["applied"] + ["unchanged"] * 9
        assert len({outcome.id for outcome in outcomes}) == 10


@pytest.mark.parametrize("how", ["look", "reload"])
async def test_going_back_from_a_broken_file_clears_the_error_at_once(
    folders: tuple[Path, Path], how: str
) -> None:
    async with holding(*folders, HastyClock()) as holder:

        async def notice() -> None:
            await (holder.reloader.look() if how == "look" else holder.reloader.reload("admin"))

        before = holder.store.current
        save(folders[0] / "limits.yaml", limits("many"))
        await notice()
        broken = holder.reloader.last
        assert not broken.ok
        assert str(broken.errors[0]).startswith("limits.yaml:2:")
        assert holder.store.current is before

        save(folders[0] / "limits.yaml", limits(1))
        await notice()
        assert holder.reloader.last.ok
        assert [outcome.result for outcome in holder.told[1:]] == ["refused", "unchanged"]
        assert holder.store.current.etag == before.etag


async def test_a_broken_file_is_reported_once_however_often_it_is_looked_at(
    folders: tuple[Path, Path],
) -> None:
    async with holding(*folders, HastyClock()) as holder:
        save(folders[0] / "limits.yaml", limits("many"))
        for _ in range(5):
            await holder.reloader.look()

        assert [outcome.result for outcome in holder.told[1:]] == ["refused"]
        assert not holder.reloader.last.ok
