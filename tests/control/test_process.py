"""The end of an engine process is known at once, whatever else hangs."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop

from mlxd.control import kernels, leftovers
from mlxd.control import process as module
from mlxd.control.kernels import Kernels
from mlxd.control.leftovers import end_leftovers
from mlxd.control.process import EngineProcess, Known, launch_of
from mlxd.core.clock import ManualClock
from mlxd.core.models import ModelSpec
from mlxd.ipc import messages as ipc
from mlxd.ipc.messages import PrefixFiles
from tests.support.few_files import no_files

SLEEPS = "import sys, time; sys.stderr.write('ready\\n'); sys.stderr.flush(); time.sleep(100)"
LEAVES_ANOTHER = f"""
import os, time
if os.fork() == 0:
    os.setsid()
    print(f'other {{os.getpid()}}', file=__import__('sys').stderr, flush=True)
    time.sleep(60)
{SLEEPS}
"""
STARTS_ANOTHER = f"import subprocess; subprocess.Popen(['sleep', '60'])\n{SLEEPS}"
SAYS_MUCH = f"import sys\nfor n in range(10000): print('line', n, file=sys.stderr)\n{SLEEPS}"
_PR_SET_CHILD_SUBREAPER = 36
LOOPS = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])


async def spawned(folder: Path, words: str, wanted: str = "ready", **more: Any) -> EngineProcess:
    """A process that has said what is wanted."""
    process, sock = await EngineProcess.spawn(folder / "tmp", **more)
    sock.close()
    while wanted not in process.stderr:  # noqa: ASYNC110  # nothing tells of it
        await asyncio.sleep(0.01)
    return process


@pytest.fixture(autouse=True)
def program(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    words = getattr(request, "param", SLEEPS)
    monkeypatch.setattr(module, "_command", lambda fd: [sys.executable, "-c", words])


def test_a_process_can_be_told_of_a_state_folder_whose_path_is_no_unicode(tmp_path: Path) -> None:
    state = tmp_path / os.fsdecode(b"caf\xe9")
    known = Known(prefixes=PrefixFiles(bytes(state / "prefixes"), "digest"))
    launch = launch_of(ModelSpec(path="/m", context=16), state / "tmp", known=known)
    sent = ipc.encode(launch)
    assert bytes(state / "tmp") in sent
    assert bytes(state / "prefixes") in sent


def test_an_engine_does_not_wait_for_a_daemon_that_is_busy_for_a_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the buffers that macOS gives a pair of sockets."""
    real = socket.socketpair

    def small() -> tuple[socket.socket, socket.socket]:
        pair = real()
        for end in pair:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        return pair

    monkeypatch.setattr(socket, "socketpair", small)
    ours, theirs = module._sockets()
    with ours, theirs:
        theirs.setblocking(False)
        assert theirs.send(bytes(100_000)) == 100_000


@pytest.mark.parametrize("program", [SAYS_MUCH], indirect=True)
def test_of_what_it_says_the_last_is_kept(tmp_path: Path) -> None:
    async def main() -> None:
        process = await spawned(tmp_path, SAYS_MUCH)
        try:
            assert len(process.stderr) == 8192
            assert process.stderr.endswith("\nline 9999\nready\n")
        finally:
            process.signal(signal.SIGKILL)
            await process.gone(10.0)

    asyncio.run(main())


def test_without_a_file_to_look_with_nobody_says_that_it_is_stopped(tmp_path: Path) -> None:
    async def main() -> None:
        process = await spawned(tmp_path, SLEEPS)
        try:
            with no_files():
                assert not process.suspended
        finally:
            process.signal(signal.SIGKILL)
            await process.gone(10.0)

    asyncio.run(main())


def test_what_could_not_be_removed_of_it_is_removed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the last of the pauses, too."""
    pauses = (0.01, 0.01, 0.01)
    monkeypatch.setattr(module, "_AGAIN_SECONDS", pauses)
    remove, tried = module._remove, []

    def fails(*folders: Path) -> None:
        tried.append(folders)
        if len(tried) > len(pauses):
            remove(*folders)

    monkeypatch.setattr(module, "_remove", fails)

    async def main() -> None:
        process = await spawned(tmp_path, SLEEPS)
        process.signal(signal.SIGKILL)
        assert await process.cleared(10.0)
        assert not list((tmp_path / "tmp").glob("worker-*"))

    asyncio.run(main())


@LOOPS
@pytest.mark.parametrize("program", [LEAVES_ANOTHER], indirect=True)
def test_a_descendant_that_holds_its_stderr_delays_nothing(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        process = await spawned(tmp_path, LEAVES_ANOTHER, "other")
        other = int(process.stderr.split("other ")[1].split()[0])
        try:
            os.kill(process.pid, signal.SIGKILL)
            assert await process.gone(10.0)
            assert process.ended.result() == -signal.SIGKILL
            assert psutil.pid_exists(other)
        finally:
            os.kill(other, signal.SIGKILL)

    run(main())


@LOOPS
def test_a_disk_that_hangs_delays_nothing(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = threading.Event()
    remove = module._remove

    def slow(*folders: Path) -> None:
        hangs.wait(60)
        remove(*folders)

    monkeypatch.setattr(module, "_remove", slow)

    async def main() -> None:
        process = await spawned(tmp_path, SLEEPS)
        loop = asyncio.get_running_loop()
        full = [loop.run_in_executor(None, hangs.wait, 60) for _ in range(64)]
        try:
            os.kill(process.pid, signal.SIGKILL)
            assert await process.gone(10.0)
            assert not await process.cleared(0.05)
        finally:
            hangs.set()
        assert await process.cleared(10.0)
        assert not list((tmp_path / "tmp").glob("worker-*"))
        await asyncio.gather(*full)

    run(main())


def test_where_there_is_no_thread_its_end_is_known_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has to do without kernels, and its folder goes with the daemon."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> None:
        process = await spawned(tmp_path, SLEEPS)
        try:
            with monkeypatch.context() as patch:
                patch.setattr(threading.Thread, "start", start)
                await process.equip()
                process.signal(signal.SIGKILL)
                assert await process.gone(10.0)
            assert await process.ended == -signal.SIGKILL
            assert not await process.cleared(0.05)
        finally:
            process.signal(signal.SIGKILL)

    uvloop.run(main())


def test_a_disk_that_hangs_does_not_hold_up_who_gives_an_engine_its_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A load that is given up ends, and so does the loop."""
    back = threading.Event()
    monkeypatch.setattr(Kernels, "lend", lambda self, private: back.wait(25))

    async def main() -> None:
        process = await spawned(tmp_path, SLEEPS)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(process.equip(), 0.2)
        process.signal(signal.SIGKILL)
        assert await process.gone(10.0)

    began = time.monotonic()
    try:
        asyncio.run(main())
    finally:
        took = time.monotonic() - began
        back.set()
    assert took < 20


def test_its_last_words_are_there_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_STDERR_SECONDS", 60)

    async def main() -> None:
        ended = await spawned(tmp_path, SLEEPS)
        os.kill(ended.pid, signal.SIGKILL)
        assert await ended.gone(10.0), "nobody holds its stderr"
        assert ended.stderr == "ready\n"

    asyncio.run(main())


@pytest.mark.parametrize("now", ["99.0", None], ids=["upgraded", "removed"])
def test_what_it_compiled_is_its_own_versions_after_an_upgrade(
    now: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another MLX would take another source's kernel for its own."""

    async def main() -> None:
        engine = await spawned(tmp_path, SLEEPS)
        (private,) = (tmp_path / "tmp").glob("worker-*")
        kernel = Kernels.own(private) / "add.ptx"
        kernel.parent.mkdir(exist_ok=True)
        kernel.write_text("add")
        os.utime(kernel, (0.0, 0.0))
        monkeypatch.setattr(kernels, "version", lambda package: now)
        engine.signal(signal.SIGKILL)
        assert await engine.gone(10.0)
        assert await engine.cleared(10.0)

    before = kernels.Kernels(tmp_path / "kernels")
    asyncio.run(main())
    kept = tmp_path / "kept"
    before.lend(kept)
    assert [file.name for file in kept.rglob("*.ptx")] == ["add.ptx"]


def test_a_time_in_which_the_daemon_stood_still_is_none_that_it_had(tmp_path: Path) -> None:
    async def main() -> None:
        clock = ManualClock()
        process = await spawned(tmp_path, SLEEPS, clock=clock)
        gone = asyncio.create_task(process.gone(0.05))
        await asyncio.sleep(0.3)
        assert not gone.done()
        clock.advance(1.0)
        assert await gone is False
        os.kill(process.pid, signal.SIGKILL)
        assert await process.gone(10.0)

    asyncio.run(main())


def test_what_a_killed_daemon_left_is_found_wherever_its_folder_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as with a full disk: it works in /tmp."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr(module, "_places", lambda temporary: [elsewhere])

    async def main() -> None:
        mine = await spawned(tmp_path / "state", SLEEPS)
        another = await spawned(tmp_path / "another", SLEEPS)
        (tmp_path / "link").symlink_to(tmp_path / "state")
        await asyncio.to_thread(end_leftovers, tmp_path / "link")
        assert await mine.gone(10.0)
        assert not another.ended.done()
        os.kill(another.pid, signal.SIGKILL)
        assert await another.gone(10.0)

    asyncio.run(main())


@pytest.fixture
def first() -> Iterator[None]:
    """As the first process of a container: what has lost its parent becomes a child of this one."""
    if sys.platform != "linux":
        pytest.skip("only Linux has a process that is no init adopt others")
    subreaper = partial(ctypes.CDLL(None).prctl, _PR_SET_CHILD_SUBREAPER)
    subreaper(1, 0, 0, 0)
    yield
    subreaper(0, 0, 0, 0)


@pytest.mark.usefixtures("first")
@pytest.mark.parametrize("program", [STARTS_ANOTHER], indirect=True)
def test_what_it_had_started_is_no_zombie_in_a_container(tmp_path: Path) -> None:
    async def main() -> int:
        process = await spawned(tmp_path, STARTS_ANOTHER)
        process.signal(signal.SIGKILL)
        assert await process.cleared(10.0)
        return process.pid

    group = asyncio.run(main())
    until = time.monotonic() + 10
    while _is_child(group):
        assert time.monotonic() < until
        time.sleep(0.01)


def _is_child(group: int) -> bool:
    """Whether there is one in that group, running or not; it is left as it is."""
    try:
        os.waitid(os.P_PGID, group, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def test_what_runs_in_a_container_with_a_folder_of_the_same_path_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its processes may be looked at from outside."""

    async def main() -> None:
        process = await spawned(tmp_path, SLEEPS)
        with monkeypatch.context() as patch:
            patch.setattr(leftovers, "_container", lambda pid: str(pid == process.pid))
            await asyncio.to_thread(end_leftovers, tmp_path)
            assert not await process.gone(0.1)
        await asyncio.to_thread(end_leftovers, tmp_path)
        assert await process.gone(10.0)

    asyncio.run(main())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has namespaces of processes")
def test_a_container_is_told_by_its_processes(tmp_path: Path) -> None:
    alone = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]
    state = os.path.realpath(tmp_path)
    try:
        subprocess.run([*alone, "true"], check=True, stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this system lets nobody have such a namespace")
    inside = [*alone, "env", f"{module.WORKER_OF}={state}", "sleep", "60"]
    left = subprocess.Popen(["sleep", "60"], env={**os.environ, module.WORKER_OF: state})
    with left, subprocess.Popen(inside) as outside:
        try:
            sleeps = _child_of(outside.pid, "sleep")
            end_leftovers(tmp_path)
            assert left.wait(10) == -signal.SIGKILL
            assert sleeps.status() != psutil.STATUS_ZOMBIE
        finally:
            outside.kill()
            left.kill()


def _child_of(parent: int, name: str) -> psutil.Process:
    """Once it is called so."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        for child in psutil.Process(parent).children():
            if child.name() == name:
                return child
        time.sleep(0.01)
    raise AssertionError(f"no {name} runs")


def test_somebody_elses_process_is_left_alone(tmp_path: Path) -> None:
    """Though its shell names the same state folder, as the command line has it."""
    environment = os.environ | {"MLXD_STATE": str(tmp_path), "TMPDIR": str(tmp_path)}
    with subprocess.Popen(["sleep", "60"], env=environment) as other:
        end_leftovers(tmp_path)
        assert other.poll() is None
        other.kill()
