import asyncio
import os
import signal
import sys

import psutil
import pytest

from mlxd.control.caffeinate import Caffeinate, When
from mlxd.core.clock import ManualClock
from tests.integration.talking import eventually


class Mac:
    """A machine with a `caffeinate`; `work` and `when` are changed by the tests."""

    def __init__(self, program, platform="darwin"):
        self.clock = ManualClock()
        self.when: When = "while_active"
        self.work = False
        self.part = Caffeinate(
            self.clock,
            lambda: self.when,
            lambda: self.work,
            program=str(program),
            platform=platform,
            lingers=5.0,
        )


@pytest.fixture
def program(tmp_path):
    """Stands for `caffeinate`: runs until it is ended."""
    file = tmp_path / "caffeinate"
    file.write_text(f"#!{sys.executable}\nimport signal\nsignal.pause()\n")
    file.chmod(0o755)
    return file


@pytest.fixture
async def mac(program):
    made = Mac(program)
    yield made
    made.when = "never"
    await made.part.look()
    eventually(lambda: not running(program), "it is ended", within=10)


def running(program):
    """The arguments of each that runs."""
    found = []
    for child in psutil.Process().children():
        try:
            words = child.cmdline()
        except psutil.Error:
            continue
        if str(program) in words and child.status() != psutil.STATUS_ZOMBIE:
            found.append(words[words.index(str(program)) + 1 :])
    return found


def one(program):
    eventually(lambda: running(program), "it runs", within=10)
    return running(program)


async def test_it_runs_while_work_does_and_a_little_longer(mac, program):
    await mac.part.look()
    assert running(program) == []
    mac.work = True
    await mac.part.look()
    assert one(program) == [["-i", "-w", str(os.getpid())]]
    mac.work = False
    mac.clock.advance(4.0)
    await mac.part.look()
    assert len(running(program)) == 1
    mac.clock.advance(2.0)
    await mac.part.look()
    eventually(lambda: not running(program), "it is ended", within=10)


async def test_ctrl_c_is_not_for_it(mac, program):
    """The daemon's requests may go on for a while."""
    mac.work = True
    await mac.part.look()
    one(program)
    (child,) = [one for one in psutil.Process().children() if str(program) in one.cmdline()]
    assert os.getpgid(child.pid) == child.pid


async def test_a_pause_between_two_requests_starts_no_other(mac, program):
    mac.work = True
    await mac.part.look()
    one(program)
    first = [child.pid for child in psutil.Process().children()]
    for _ in range(5):
        mac.work = not mac.work
        mac.clock.advance(1.0)
        await mac.part.look()
    assert [child.pid for child in psutil.Process().children()] == first


async def test_policy_is_asked_at_each_look(mac, program):
    mac.when = "always"
    await mac.part.look()
    one(program)
    mac.when, mac.work = "never", True
    await mac.part.look()
    eventually(lambda: not running(program), "it is ended", within=10)
    mac.when = "while_active"
    await mac.part.look()
    one(program)


async def test_one_that_dies_is_started_again_but_not_at_once(mac, program):
    mac.work = True
    await mac.part.look()
    one(program)
    os.kill(mac.part._process.pid, signal.SIGKILL)
    for _ in range(500):
        await mac.part.look()
        if mac.part._process is None:
            break
        await asyncio.sleep(0.01)
    mac.clock.advance(30)
    await mac.part.look()
    assert running(program) == []
    mac.clock.advance(40)
    await mac.part.look()
    one(program)


async def test_a_machine_without_it_is_told_once(caplog):
    mac = Mac("/nonexistent/caffeinate")
    mac.work = True
    for _ in range(3):
        await mac.part.look()
        mac.clock.advance(100)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


async def test_elsewhere_than_on_macos_nothing_is_done(program):
    mac = Mac(program, platform="linux")
    mac.work = True
    await mac.part.run()
    assert running(program) == []
