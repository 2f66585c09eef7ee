"""Calls in threads that nobody waits for at the end."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from mlxd.core.threads import NoThread, Threads
from tests.support.few_threads import no_threads


@pytest.fixture
def threads() -> Threads:
    return Threads("test")


async def test_what_is_returned_or_raised_comes_back(threads: Threads) -> None:
    assert await threads.run(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await threads.run(divmod, 7, 0)


async def test_one_that_hangs_takes_nobody_elses_place(threads: Threads) -> None:
    release = threading.Event()
    hanging = [threads.run(release.wait) for _ in range(50)]
    assert await threads.run(divmod, 7, 2) == (3, 1)
    release.set()
    assert await asyncio.gather(*hanging) == [True] * 50


async def test_giving_up_does_not_disturb_its_end(threads: Threads) -> None:
    release = threading.Event()
    waiting = threads.run(release.wait)
    waiting.cancel()
    release.set()
    assert await threads.run(divmod, 7, 2) == (3, 1)


async def test_threads_are_used_again_and_few_stay_idle(threads: Threads) -> None:
    before = threading.active_count()
    used = {await threads.run(threading.get_ident) for _ in range(20)}
    assert len(used) == 1
    await asyncio.gather(*(threads.run(divmod, 7, 2) for _ in range(20)))
    deadline = asyncio.get_running_loop().time() + 5.0
    while threading.active_count() > before + 2:
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.01)


async def test_want_of_threads_is_a_failure_as_a_disks_is(threads: Threads) -> None:
    with no_threads(), pytest.raises(NoThread, match="the system has no thread for it"):
        await threads.run(divmod, 7, 2)


async def test_what_must_not_be_lost_is_done_without_a_thread(threads: Threads) -> None:
    apart = await threads.run_or_here(threading.get_ident)
    assert apart != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        await threads.run_or_here(divmod, 7, 0)
    with no_threads():
        assert await Threads("none").run_or_here(threading.get_ident) == threading.get_ident()


def test_a_process_ends_though_one_hangs() -> None:
    program = (
        "import asyncio, threading\n"
        "from mlxd.core.threads import Threads\n"
        "async def main():\n"
        "    Threads('t').run(threading.Event().wait)\n"
        "asyncio.run(main())\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=20).returncode == 0
