"""Calls in threads that nobody waits for at the end."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from mlxd.core.threads import in_thread


async def test_what_is_returned_or_raised_comes_back() -> None:
    assert await in_thread(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await in_thread(divmod, 7, 0)


async def test_one_that_hangs_takes_nobody_elses_place() -> None:
    release = threading.Event()
    hanging = [in_thread(release.wait) for _ in range(50)]
    assert await in_thread(divmod, 7, 2) == (3, 1)
    release.set()
    assert await asyncio.gather(*hanging) == [True] * 50


async def test_giving_up_does_not_disturb_its_end() -> None:
    release = threading.Event()
    waiting = in_thread(release.wait)
    waiting.cancel()
    release.set()
    assert await in_thread(divmod, 7, 2) == (3, 1)


def test_a_process_ends_though_one_hangs() -> None:
    program = (
        "import asyncio, threading\n"
        "from mlxd.core.threads import in_thread\n"
        "async def main():\n"
        "    in_thread(threading.Event().wait)\n"
        "asyncio.run(main())\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=20).returncode == 0
