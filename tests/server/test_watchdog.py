"""What the watchdog takes for silence, for an answer, and for its own trouble."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlxd.cli import exits
from mlxd.core.clock import ManualClock
from mlxd.server import watchdog
from mlxd.server.watchdog import Heartbeat, Silence, Watchdog, answers, busy, told_by_systemd


def test_silence_is_what_the_watching_thread_saw_itself() -> None:
    silence = Silence(step=1.0)
    assert silence.after(1.0, beats=3) == 0
    assert silence.after(1.0, beats=3) == 1
    assert silence.after(1.5, beats=3) == 2.5
    assert silence.after(3600.0, beats=3) == 4.5, "of an hour of sleep two steps count"
    assert silence.after(1.0, beats=4) == 0


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_who_systemd_watches(environ: dict[str, str], seconds: float | None) -> None:
    assert told_by_systemd(environ, pid=7) == seconds


def test_systemd_is_told_only_while_the_loop_is_in_time_and_supervised() -> None:
    lags: list[float] = []
    told: list[int] = []
    well = True
    heart = Heartbeat(
        ManualClock(), 30.0, lags.append, lambda: told.append(heart.beats), supervised=lambda: well
    )
    heart.beat(0.1)
    heart.beat(-0.1)
    heart.beat(5.5)
    well = False
    heart.beat(0.0)
    assert lags == [0.1, 0.0, 5.5, 0.0]
    assert told == [1, 2]


def test_a_lag_beyond_the_policy_is_not_in_time_however_short() -> None:
    told: list[bool] = []
    heart = Heartbeat(ManualClock(), 2.0, lambda _: None, lambda: told.append(True))
    heart.beat(2.5)
    assert not told


@contextmanager
def server(family: socket.AddressFamily, host: str, answer: bytes) -> Iterator[watchdog.Address]:
    """Answers one connection."""
    with socket.socket(family) as sock:
        try:
            sock.bind((host, 0))
        except OSError:
            pytest.skip(f"{host} is not there")
        sock.listen()

        def serve() -> None:
            try:
                connection, _ = sock.accept()
            except OSError:
                return
            with connection:
                connection.recv(1000)
                if answer:
                    connection.sendall(answer)
                else:
                    connection.recv(1000)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield family, sock.getsockname()
    thread.join(5)


@pytest.mark.parametrize(
    ("family", "host"),
    [
        (socket.AF_INET, "127.0.0.1"),
        (socket.AF_INET, "0.0.0.0"),
        (socket.AF_INET6, "::1"),
        (socket.AF_INET6, "::"),
    ],
)
def test_an_answer_of_any_status_is_one(family: socket.AddressFamily, host: str) -> None:
    with server(family, host, b"HTTP/1.1 503 Service Unavailable\r\n\r\n") as address:
        assert answers(address, 5.0) is True


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-x"])
def test_nothing_and_something_else_are_no_answers(answer: bytes) -> None:
    with server(socket.AF_INET, "127.0.0.1", answer) as address:
        assert answers(address, 0.3) is False


def test_nobody_there_is_no_answer() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        assert answers((socket.AF_INET, sock.getsockname()), 0.5) is False


def test_want_of_files_is_its_own_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socket", none_left)
    assert answers((socket.AF_INET, ("127.0.0.1", 1)), 0.5) is None


class _Unable(socket.socket):
    error: OSError

    def connect(self, _address: object) -> None:
        raise self.error


@pytest.mark.parametrize(
    "name",
    ["EADDRNOTAVAIL", "ENETUNREACH", "EHOSTUNREACH", "ENETDOWN", "EACCES", "EPERM", "EINVAL"],
)
def test_what_no_listener_can_cause_judges_nothing(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(_Unable, "error", OSError(getattr(errno, name), "x"), raising=False)
    monkeypatch.setattr(socket, "socket", _Unable)
    assert answers((socket.AF_INET, ("127.0.0.1", 1)), 0.5) is None


@pytest.mark.parametrize(
    "error",
    [ConnectionRefusedError(errno.ECONNREFUSED, "x"), ConnectionResetError(errno.ECONNRESET, "x"),
     BrokenPipeError(errno.EPIPE, "x"), TimeoutError(errno.ETIMEDOUT, "x"), TimeoutError("x")],
)  # fmt: skip
def test_what_a_listener_can_cause_is_a_miss(
    monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    monkeypatch.setattr(_Unable, "error", error, raising=False)
    monkeypatch.setattr(socket, "socket", _Unable)
    assert answers((socket.AF_INET, ("127.0.0.1", 1)), 0.5) is False


_LAST_WORDS = """
import contextlib, os, sys
from pathlib import Path
from mlxd.server.watchdog import end_process
_ours, full = os.pipe()
os.set_blocking(full, False)
room = int(sys.argv[2])
with contextlib.suppress(BlockingIOError):
    while True:
        os.write(full, b"x" * 512)
os.set_blocking(full, True)
os.read(_ours, room)
os.dup2(full, 2)
end_process("it hung", Path(sys.argv[1]), lambda: [])
"""


@pytest.mark.parametrize("room", [1, pytest.param(512, marks=pytest.mark.slow)])
def test_a_stderr_that_nobody_reads_keeps_no_stacks_from_the_disk(
    tmp_path: Path, room: int
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LAST_WORDS, str(tmp_path), str(room)], check=False, timeout=60
    )
    assert done.returncode == watchdog.BROKEN
    told = (tmp_path / watchdog.STACKS).read_text()
    assert "it hung" in told
    assert "hread 0x" in told


def test_a_disk_that_hangs_keeps_no_stacks_from_stderr(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / watchdog.STACKS)  # opening it waits for a reader
    program = _LAST_WORDS.replace("os.dup2(full, 2)", "")
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), "1"],
        check=False, timeout=60, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == watchdog.BROKEN
    assert "it hung" in done.stderr
    assert "hread 0x" in done.stderr


def test_a_freeze_during_a_probe_judges_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 900.0])
    monkeypatch.setattr("mlxd.server.watchdog.time.monotonic", lambda: next(times))
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        assert answers((socket.AF_INET, sock.getsockname()), 0.5) is None


class _Heart(Heartbeat):
    """One that beats whenever somebody looks."""

    def __init__(self, period: float) -> None:
        self.period = period
        self._looks = count()

    @property
    def beats(self) -> int:  # type: ignore[override]
        return next(self._looks)


def _judged(
    answer: list[bool | None],
    rounds: int,
    *,
    taken: int = 1,
    emptied: int = 0,
    seconds: float = 0.0,
    period: float = 1.0,
) -> list[str]:
    """What comes of probes that find this, again and again, while so many connections are accepted
    during each, and so often none is left. Each takes so long, and the loop, which should beat once
    in a `period`, beats once meanwhile.
    """
    ends: list[str] = []
    over = threading.Event()
    asked = 0

    def address() -> watchdog.Address:
        return socket.AF_INET, ("127.0.0.1", 1)

    def probe(_address: object, _timeout: float) -> bool | None:
        nonlocal asked
        found = answer[asked % len(answer)]
        asked += 1
        if asked >= rounds:
            over.set()
        return found

    def end(why: str) -> None:
        ends.append(why)
        over.set()

    dog = Watchdog(0.01, _Heart(period), address, lambda: (asked * taken, asked * emptied), end)
    patch = pytest.MonkeyPatch()
    patch.setattr(watchdog, "answers", probe)
    patch.setattr(watchdog, "time", SimpleNamespace(monotonic=lambda: asked * seconds))
    try:
        dog.start()
        assert over.wait(20)
        dog.stop()
    finally:
        patch.undo()
    return ends


def test_three_misses_in_a_row_end_it_and_fewer_do_not() -> None:
    assert _judged([False, False, True], 12) == []
    assert _judged([False, None, False, None, True], 20) == []
    assert len(_judged([False, None, False, False], 4)) == 1


def test_an_overload_is_no_hang() -> None:
    assert len(_judged([False], 12, taken=0)) == 1
    assert len(_judged([False], 12, taken=1)) == 1, "the probe itself"
    assert _judged([False], 12, taken=40) == [], "those before it are taken"
    assert len(_judged([False], 12, taken=40, emptied=1)) == 1, "nobody is before it"
    assert _judged([False], 12, seconds=10.0) == [], "the loop turns too slowly"
    assert _judged([False], 12, seconds=1.5, period=0.375) == [], "in the shortest watch, too"
    assert busy(1.0, 10.0, beats=2, taken=1, emptied=1), "the other thread judges whether it turns"
    assert busy(1.0, 10.0, beats=6, taken=1, emptied=1), "a probe takes several turns"
    assert not busy(1.0, 10.0, beats=9, taken=1, emptied=1)
    assert not busy(1.0, 0.001, beats=0, taken=1, emptied=1), "it was hung up on at once"


def test_of_a_short_watch_the_beats_are_as_many() -> None:
    heart = Heartbeat(ManualClock(), 1.5, lambda _: None, lambda: None)
    assert busy(heart.period, 1.5, beats=2, taken=1, emptied=1), "each turn takes half a second"
    assert not busy(heart.period, 1.5, beats=3, taken=0, emptied=0)


def test_the_beat_runs_on_the_loop() -> None:
    async def some_time() -> int:
        from mlxd.core.clock import SystemClock

        heart = Heartbeat(SystemClock(), 0.04, lambda _: None, lambda: None)
        task = asyncio.create_task(heart.run())
        await asyncio.wait([task], timeout=1.0)
        task.cancel()
        return heart.beats

    assert asyncio.run(some_time()) >= 3


def test_the_documented_status_is_the_one_it_ends_with() -> None:
    assert exits.BROKEN == watchdog.BROKEN
