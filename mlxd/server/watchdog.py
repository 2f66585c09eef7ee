"""Watches the daemon itself: a beat on the event loop, and threads that end a daemon that hangs.

The beat measures how late the loop is and tells systemd that all is well while it is. Two threads
beside the loop see what the loop cannot: that the beat has stopped, and that nobody answers /livez
on the real listener, which has nobody else to take. Time during which the threads did not run
either, because the machine slept or the process was stopped, counts for nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import faulthandler
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from operator import sub
from pathlib import Path
from typing import Any, NoReturn

from mlxd.core.clock import Clock
from mlxd.core.instance import reachable

log = logging.getLogger(__name__)

BROKEN = 70
"""The exit status of a daemon that ended itself because it hung, or lost a part (EX_SOFTWARE)."""
MISSES = 3
"""Probes in a row that nobody answers; then the daemon ends."""
STACKS = "stacks.txt"

_BEAT_SECONDS = 1.0
_FEW = 0.75
"""Of the beats that there should have been: a loop that has no more turns too slowly. A probe takes
several turns, each as long as the time between two beats at most.
"""
_LATE_SECONDS = 5.0
_PROBE_SECONDS = 10.0
_LAST_WORDS_SECONDS = 3.0
_MISSED = frozenset((errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE, errno.ETIMEDOUT))
"""What a listener that hangs or is gone can cause; all else is the trouble of the probe itself."""
_MOST_STACKS = 1 << 20

Address = tuple[socket.AddressFamily, Any]


def told_by_systemd(environ: Mapping[str, str], pid: int) -> float | None:
    """Seconds within which systemd wants to hear from this process; None: it does not."""
    text = environ.get("WATCHDOG_USEC", "")
    meant = environ.get("WATCHDOG_PID", "") in ("", str(pid))
    return int(text) / 1e6 if meant and text.isdecimal() and int(text) > 0 else None


class Heartbeat:
    """On the loop, as long as the daemon lives."""

    def __init__(
        self,
        clock: Clock,
        within: float,
        observe: Callable[[float], None],
        alive: Callable[[], None],
        *,
        systemd: float | None = None,
        supervised: Callable[[], bool] = lambda: True,
    ) -> None:
        """`within`: how long the daemon may show no progress. `observe` is told how late the loop
        was each time; `alive` is called while that is little and `supervised` says yes.
        """
        self.beats = 0
        self.period = min(_BEAT_SECONDS, within / 4, (systemd or within) / 4)
        """Seconds from one beat to the next, where the loop is in time."""
        self._clock = clock
        self._late = min(_LATE_SECONDS, within)
        self._observe = observe
        self._alive = alive
        self._supervised = supervised

    async def run(self) -> None:
        while True:
            due = self._clock.monotonic() + self.period
            await asyncio.sleep(self.period)
            self.beat(self._clock.monotonic() - due)

    def beat(self, lag: float) -> None:
        """The loop turns, `lag` seconds late."""
        self.beats += 1
        self._observe(max(0.0, lag))
        if lag < self._late and self._supervised():
            self._alive()


class Silence:
    """How long the loop has not beaten while the watching thread itself ran."""

    def __init__(self, step: float) -> None:
        self._most = 2 * step
        self._beats = -1
        self._seconds = 0.0

    def after(self, elapsed: float, beats: int) -> float:
        """`elapsed` since the look before; what exceeds two steps of it, this thread slept too."""
        if beats != self._beats:
            self._beats = beats
            self._seconds = 0.0
        else:
            self._seconds += min(elapsed, self._most)
        return self._seconds


class Watchdog:
    """Two threads, from `start` to `stop`."""

    def __init__(
        self,
        within: float,
        heart: Heartbeat,
        address: Callable[[], Address | None],
        taken: Callable[[], tuple[int, int]],
        end: Callable[[str], None],
    ) -> None:
        """`within`: the longest silence of the loop, and the time between two probes. `address` is
        asked for each probe anew; `taken` counts the connections that were accepted there, and how
        often nobody was left who waited; `end` is told why, once, and is not to return.
        """
        self._within = within
        self._heart = heart
        self._address = address
        self._taken = taken
        self._end = end
        self._stopped = threading.Event()
        self._ending = threading.Lock()

    def start(self) -> None:
        for name, work in (("watchdog", self._listen), ("watchdog probe", self._probe)):
            try:
                threading.Thread(target=work, name=name, daemon=True).start()
            except RuntimeError as error:
                log.warning("the %s does not run: %s", name, error)

    def stop(self) -> None:
        """From now on the daemon may take as long as it needs."""
        self._stopped.set()

    def _listen(self) -> None:
        step = min(_BEAT_SECONDS, self._within / 10)
        silence = Silence(step)
        before = time.monotonic()
        while not self._stopped.wait(step):
            now = time.monotonic()
            seconds = silence.after(now - before, self._heart.beats)
            before = now
            if seconds > self._within:
                self._over(f"the event loop has not turned for {seconds:.1f} s")

    def _probe(self) -> None:
        timeout = min(self._within, _PROBE_SECONDS)
        misses = 0
        while not self._stopped.wait(self._within):
            address = self._address()
            if address is None:
                continue
            before = self._counts()
            answered = answers(address, timeout)
            if answered is None or address != self._address():
                continue
            if not answered and busy(self._heart.period, *map(sub, self._counts(), before)):
                continue
            misses = 0 if answered else misses + 1
            if misses >= MISSES:
                self._over(f"nobody answered /livez on {address[1][0]} {misses} times in a row")

    def _counts(self) -> tuple[float, int, int, int]:
        return (time.monotonic(), self._heart.beats, *self._taken())

    def _over(self, why: str) -> None:
        if not self._stopped.is_set() and self._ending.acquire(blocking=False):
            self._end(why)


def answers(address: Address, timeout: float) -> bool | None:
    """Whether something that speaks HTTP answers there in time; None: that cannot be judged.

    Any status will do: one that refuses lives.
    """
    family, where = address
    host = reachable(where[0])
    asked = f"GET /livez HTTP/1.1\r\nHost: {_quoted(host)}\r\nConnection: close\r\n\r\n"
    began = time.monotonic()
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout)
            sock.connect((host, *where[1:]))
            sock.sendall(asked.encode())
            if sock.recv(8).startswith(b"HTTP/"):
                return True
    except OSError as error:
        if not isinstance(error, TimeoutError) and error.errno not in _MISSED:
            return None
    frozen = time.monotonic() - began > 2 * timeout
    return None if frozen else False


def busy(period: float, seconds: float, beats: int, taken: int, emptied: int) -> bool:
    """Whether a probe that got no answer in `seconds` has only not had its turn: others were
    accepted meanwhile, and it may wait behind more of them; or the loop turned too slowly. An
    overload is no hang, and whoever is served would lose by it.
    """
    behind_others = taken > 1 and not emptied
    return behind_others or beats < int(_FEW * seconds / period)


def _quoted(host: str) -> str:
    return f"[{host.partition('%')[0]}]" if ":" in host else host


def end_process(why: str, state: Path, workers: Callable[[], Iterable[int]]) -> NoReturn:
    """Say why, dump the stack of every thread, kill the workers' groups, and be gone.

    Neither the log nor a lock is used: whoever hangs may hold them. Nor is a disk waited for.
    """
    words = f"mlxd: {why}: the daemon ends itself with status {BROKEN}; stacks of its threads:\n"
    try:
        _tell_all(words.encode(), state / STACKS)
        for pid in workers():
            _kill_group(pid)
    finally:
        os._exit(BROKEN)


def end_process_after(seconds: float) -> None:
    """Unless it is gone by then."""
    timer = threading.Timer(seconds, os._exit, (BROKEN,))
    timer.daemon = True
    with contextlib.suppress(RuntimeError):  # no thread can be had
        timer.start()


def _tell_all(words: bytes, file: Path) -> None:
    """A disk that hangs keeps nothing from stderr, nor a stderr that nobody reads from the disk."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    words += _stacks()
    tellers = []
    for opened in (lambda: os.open(file, flags, 0o600), sys.stderr.fileno):
        teller = threading.Thread(target=_tell, args=(words, opened), daemon=True)
        with contextlib.suppress(RuntimeError):  # no thread can be had: so it ends unheard
            teller.start()
            tellers.append(teller)
    for teller in tellers:
        teller.join(_LAST_WORDS_SECONDS)


def _tell(words: bytes, opened: Callable[[], int]) -> None:
    with contextlib.suppress(OSError, ValueError):
        os.write(opened(), words)


def _stacks() -> bytes:
    """Of all threads; empty, and on stderr already, when no file is left for the way they take.

    The dump holds the interpreter while it writes, so it goes where it cannot be made to wait.
    """
    try:
        ours, theirs = os.pipe()
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            os.set_blocking(sys.stderr.fileno(), False)
            faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        return b""
    try:
        os.set_blocking(ours, False)
        os.set_blocking(theirs, False)
        faulthandler.dump_traceback(file=theirs, all_threads=True)
        return os.read(ours, _MOST_STACKS)
    except OSError:
        return b""
    finally:
        os.close(ours)
        os.close(theirs)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL)
