"""The pool of spares on a virtual clock: its processes are made up, and Worker is not started."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlxd.control.spare import Spare
from mlxd.control.spares import ANSWER_SECONDS, WARM_SECONDS, Spares
from mlxd.control.stock import AMPLE_BYTES
from mlxd.control.watermarks import Level
from mlxd.control.worker import Worker
from mlxd.core.clock import Clock
from mlxd.core.errors import ModelLoadFailed
from mlxd.core.footprint import Footprint
from mlxd.core.models import ModelSpec
from mlxd.ipc import messages as ipc
from mlxd.policy.load import load
from tests.support.conversation import Ending, Pipe
from tests.support.daemon import write_policies
from tests.support.virtual_time import VirtualLoop

SPEC = ModelSpec("/m", 512)
READY = ipc.Ready(True, 1, 512, 0.0, 1, False, False, Footprint(0, ()))


class Line(Pipe):
    """To a process that may answer its launch."""

    def __init__(self, spare: Spare) -> None:
        super().__init__()
        self.spare = spare
        self.answers = True
        self.protocol: Any = spare

    def write(self, data: Any) -> None:
        super().write(data)
        if self.answers:
            self.says(ipc.Loading("weights"))

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def says(self, message: ipc.Up) -> None:
        self.protocol.data_received(ipc.encode(message))


class Machine:
    """With as many made-up processes as are asked for."""

    def __init__(self, folder: Path, policy: str = "auto") -> None:
        self.loop = VirtualLoop()
        self.folder = folder
        self.level = Level.NORMAL
        self.total = AMPLE_BYTES
        self.held = False
        self.lines: list[Line] = []
        self.starts: list[float] = []
        self.fresh: list[float] = []
        self.refuses = False
        self.began = self.loop.now
        self.spares = self.loop.do(
            lambda: Spares(
                folder, self.loop, self.policies(policy),
                total=lambda: self.total, level=lambda: self.level, held=lambda: self.held,
                start=self._start,
            )
        )  # fmt: skip
        self.running = self.loop.create_task(self.spares.run())

    def policies(self, spares: str) -> Any:
        text = f"worker: {{spares: {spares}}}\n"
        return load(write_policies(self.folder / "policies", {"supervision": text}))

    async def _start(self, temporary: Path, clock: Clock) -> Spare:
        self.starts.append(self.loop.now - self.began)
        if self.refuses:
            raise OSError(11, "Resource temporarily unavailable")
        process: Any = Ending(100 + len(self.lines))
        process.current = True
        process.cleared = process.gone
        process.equip = lambda: asyncio.sleep(0)
        spare = Spare(process, clock)
        self.lines.append(Line(spare))
        spare.connection_made(self.lines[-1])
        return spare

    async def spawn(self, spec: Any, name: str, clock: Clock, **more: Any) -> Any:
        """In the place of Worker.spawn."""
        self.fresh.append(self.loop.now - self.began)
        return SimpleNamespace(until_ready=lambda: asyncio.sleep(1.0), pid=1, spare=False)

    def warmed(self) -> Machine:
        """With one that is warm."""
        self.loop.advance(2.0)
        self.loop.do(self.lines[-1].says, ipc.Warm())
        self.loop.settle()
        return self

    def load(self) -> Any:
        work = self.spares.spawn(SPEC, "m", self.loop, temporary=self.folder)
        return self.loop.run(work)

    @property
    def pids(self) -> list[int]:
        return self.spares.pids()

    def signalled(self, line: int) -> bool:
        return bool(self.lines[line].spare.process.ended.done())

    def close(self) -> None:
        self.loop.run(self.spares.close())
        for line in self.lines:
            self.loop.do(line.spare.process.signal, signal.SIGKILL)
        self.running.cancel()
        self.loop.settle()
        self.loop.close()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    made = Machine(tmp_path)
    monkeypatch.setattr(Worker, "spawn", made.spawn)
    yield made
    made.close()


def test_one_is_started_once_the_daemon_has(machine: Machine) -> None:
    machine.loop.settle()
    assert machine.starts == []
    machine.loop.advance(30)
    assert machine.starts == [1.0], "one, however long it takes to get warm"
    assert [kept.warm for kept in machine.spares.kept()] == [False]


def test_a_load_takes_it_and_another_is_made_after_the_load(machine: Machine) -> None:
    machine.warmed()
    worker = machine.load()
    assert worker.spare
    assert worker.pid == machine.lines[0].spare.pid
    launch = machine.lines[0].said[0]
    assert isinstance(launch, ipc.Launch)
    assert launch.path == "/m"
    machine.loop.advance(100)
    assert len(machine.starts) == 1, "its load is under way"
    machine.loop.do(machine.lines[0].says, READY)
    ended = machine.loop.now - machine.began
    machine.loop.advance(3)
    assert machine.starts[1:] == [ended + 1.0]
    assert (machine.spares.taken, machine.spares.fresh) == (1, 0)
    assert machine.fresh == []


def test_what_it_says_first_reaches_its_worker(machine: Machine) -> None:
    machine.warmed()

    async def loaded() -> None:
        worker = await machine.spares.spawn(SPEC, "m", machine.loop, temporary=machine.folder)
        assert worker.told.progress(None).stage == "process", "whoever made it is first"
        await asyncio.sleep(0)
        assert worker.told.progress(None).stage == "weights"

    machine.loop.run(loaded())


def test_one_that_is_not_warm_yet_is_left_alone(machine: Machine) -> None:
    machine.loop.advance(2)
    assert not machine.load().spare
    assert len(machine.pids) == 1
    assert machine.spares.fresh == 1


def test_one_that_does_not_answer_costs_a_second_and_its_life(machine: Machine) -> None:
    machine.warmed()
    machine.lines[0].answers = False
    began = machine.loop.now
    assert not machine.load().spare
    assert machine.loop.now - began == pytest.approx(ANSWER_SECONDS)
    assert machine.signalled(0)
    assert len(machine.fresh) == 1
    machine.loop.advance(3)
    assert machine.starts[1] == pytest.approx(machine.fresh[0] + 2.0), "after its back-off"


def test_one_that_is_out_of_date_is_ended_and_not_used(machine: Machine) -> None:
    machine.warmed()
    process: Any = machine.lines[0].spare.process
    process.current = False
    assert not machine.load().spare
    assert machine.signalled(0)
    machine.loop.advance(2.5)
    assert len(machine.starts) == 2, "that is no failure"


def test_one_that_dies_is_replaced_with_back_off(machine: Machine) -> None:
    machine.warmed()
    for expected in (2, 4, 8):
        died = machine.loop.now - machine.began
        machine.loop.do(machine.lines[-1].spare.process.signal, signal.SIGKILL)
        machine.loop.advance(expected + 0.01)
        assert machine.starts[-1] == pytest.approx(died + expected)
        machine.loop.do(machine.lines[-1].says, ipc.Warm())


def test_one_of_another_mlxd_is_ended_and_the_log_says_why(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.loop.advance(2)
    machine.loop.do(machine.lines[0].says, ipc.Hello(ipc.PROTOCOL + 1))
    assert machine.signalled(0)
    assert f"it speaks protocol {ipc.PROTOCOL + 1}" in caplog.text


def test_one_that_never_gets_warm_is_ended(machine: Machine) -> None:
    machine.loop.advance(WARM_SECONDS + 40)
    assert machine.signalled(0)


def test_a_system_that_gives_no_process_is_asked_less_and_less(machine: Machine) -> None:
    machine.refuses = True
    machine.loop.advance(32)
    assert machine.starts == [1, 3, 7, 15, 31]


def test_at_the_warning_mark_there_are_none(machine: Machine) -> None:
    machine.warmed()
    machine.level = Level.WARNING
    machine.loop.do(machine.spares.look)
    machine.loop.settle()
    assert machine.signalled(0)
    machine.loop.advance(100)
    assert len(machine.starts) == 1
    machine.level = Level.NORMAL
    machine.loop.do(machine.spares.look)
    machine.loop.advance(1)
    assert len(machine.starts) == 2


def test_a_daemon_that_is_held_keeps_none(machine: Machine) -> None:
    machine.held = True
    machine.loop.advance(100)
    assert machine.starts == []
    machine.held = False
    machine.loop.advance(31)
    assert len(machine.starts) == 1, "once it is not"


def test_policy_changes_how_many_there_are_at_once(machine: Machine) -> None:
    machine.warmed()
    machine.loop.do(machine.spares.apply, machine.policies("2"))
    machine.loop.advance(0.5)
    assert len(machine.pids) == 2
    machine.loop.do(machine.spares.apply, machine.policies("0"))
    machine.loop.settle()
    assert machine.pids == []
    assert machine.signalled(0)
    assert machine.signalled(1)


def test_a_load_that_is_given_up_meanwhile_leaves_no_process(machine: Machine) -> None:
    machine.warmed()
    machine.lines[0].answers = False
    work = machine.spares.spawn(SPEC, "m", machine.loop, temporary=machine.folder)
    task = machine.loop.create_task(work)
    machine.loop.settle()
    task.cancel()
    machine.loop.settle()
    assert task.cancelled()
    assert machine.signalled(0)
    assert machine.fresh == []
    machine.loop.advance(1.5)
    assert len(machine.starts) == 2, "no load is under way any more"


def test_what_it_said_before_it_ended_reaches_its_worker(machine: Machine) -> None:
    machine.warmed()
    line = machine.lines[0]
    line.answers = False

    async def loaded() -> str:
        work = machine.spares.spawn(SPEC, "m", machine.loop, temporary=machine.folder)
        load = asyncio.create_task(work)
        await asyncio.sleep(0.1)
        line.says(ipc.Loading("weights"))
        line.says(ipc.LoadFailed("it has no weights"))
        line.spare.connection_lost(None)
        line.spare.process.signal(signal.SIGKILL)
        with pytest.raises(ModelLoadFailed) as failed:
            await (await load).until_ready()
        assert failed.value.final
        return failed.value.message

    assert "it has no weights" in machine.loop.run(loaded())


def test_nothing_overtakes_what_it_said_first(machine: Machine) -> None:
    """A read may come before whoever made the worker waits."""
    machine.warmed()
    line = machine.lines[0]

    async def loaded() -> None:
        worker = await machine.spares.spawn(SPEC, "m", machine.loop, temporary=machine.folder)
        line.says(ipc.Loading("footprint"))
        await asyncio.sleep(0)
        assert worker.told.progress(None).stage == "footprint"

    machine.loop.run(loaded())


def test_an_end_waits_for_those_that_were_killed_and_not_before_it_is_asked_to(
    machine: Machine,
) -> None:
    machine.warmed()
    process: Any = machine.lines[0].spare.process
    process.signal = lambda number: machine.loop.call_later(2.0, process.ended.set_result, -number)
    began = machine.loop.now
    machine.loop.do(machine.spares.end)
    assert machine.loop.now == began
    assert machine.pids == []
    machine.loop.run(machine.spares.close())
    assert machine.loop.now - began == pytest.approx(2.0)
    process.signal = lambda number: None


def test_an_end_waits_for_one_whose_load_was_given_up(machine: Machine) -> None:
    machine.warmed()
    machine.lines[0].answers = False
    process: Any = machine.lines[0].spare.process
    process.signal = lambda number: machine.loop.call_later(2.0, process.ended.set_result, -number)
    work = machine.spares.spawn(SPEC, "m", machine.loop, temporary=machine.folder)
    task = machine.loop.create_task(work)
    machine.loop.settle()
    task.cancel()
    machine.loop.settle()
    machine.loop.run(machine.spares.close())
    assert process.ended.done()
    process.signal = lambda number: None
