"""One engine process as the system sees it: its start, what it says on stderr, its end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import psutil

from mlxd.control.kernels import VARIABLE, Kernels
from mlxd.core.clock import Clock, SystemClock, within
from mlxd.core.footprint import Footprint
from mlxd.core.models import ModelSpec
from mlxd.ipc import messages
from mlxd.ipc.messages import Budget, Launch, PrefixFiles

KILLED_SECONDS = 5.0
"""From SIGKILL to the end; the system may need a moment for its memory."""
WORKER_OF = "MLXD_WORKER_OF"
"""The variable that names the state folder of the daemon whose worker it is: see leftovers.py."""
_STDERR_TAIL = 8192
_STDERR_SECONDS = 0.5
"""How long its last words are waited for: what it started may hold its stderr for ever."""
_SOCKET_BYTES = 1 << 17
"""What its socket takes at least before somebody waits. macOS's own take 8 KiB, some steps' tokens:
an engine would stand still whenever the daemon is busy with something else.
"""
_KERNELS = "kernels"
_TURNS = "turns"
"""What engines that step one at a time lock; made by the first of them."""
_DEAF = frozenset(
    ("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_USEC", "HF_TOKEN")
)
"""What systemd tells the daemon and no worker must answer; and the hub's token is not for them."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a model before it is loaded."""

    footprint: Footprint | None = None
    measured: bool = False
    """Whether it was taken from the loaded model, by the versions that load it now."""
    held: bool = False
    """Whether grammars have held its answers."""
    prefixes: PrefixFiles | None = None
    """Where what was computed of its prompts is kept on disk."""


UNKNOWN = Known()
_AGAIN_SECONDS = (1.0, 10.0, 60.0)
"""Until what a process left on disk is removed again, where that failed: for want of a file, or on
a network disk.
"""
_PROTOCOL = re.compile(rb"^PROTOCOL = ([0-9]{1,9})$", re.MULTILINE)
_ROOM = 8 * 2**20
"""Bytes: what MLX compiles for a model on a CPU takes less."""


class _Words(asyncio.Protocol):
    """The last that came through a pipe, until nobody holds its other end."""

    def __init__(self) -> None:
        self.tail = b""
        self.over = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.tail = (self.tail + data)[-_STDERR_TAIL:]

    def connection_lost(self, exc: Exception | None) -> None:
        self.over.set()


class EngineProcess:
    """Leads a session of its own, with a private TMPDIR that goes when it goes. Which model it is
    for it hears over its socket.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        private: Path,
        temporary: Path,
        clock: Clock,
        stderr: tuple[asyncio.ReadTransport, _Words],
    ) -> None:
        self._process = process
        self._clock = clock
        self._cleared = asyncio.Event()
        self._private = private
        self._temporary = temporary
        self._kernels = kernels_of(temporary)
        self._pipe, self._words = stderr
        self.ended: asyncio.Task[int] = asyncio.create_task(
            self._reap(), name=f"reap {process.pid}"
        )
        """Its exit status, once it is gone."""

    @classmethod
    async def spawn(
        cls, temporary: Path, clock: Clock | None = None
    ) -> tuple[EngineProcess, socket.socket]:
        """The process, and our end of its socket. Raises OSError; then nothing is left of it."""
        private = _private_folder(temporary)
        with contextlib.ExitStack() as undo:
            undo.callback(_remove, private, temporary)
            ours, theirs = _sockets()
            undo.callback(ours.close)
            pipe, words, stderr = await _pipe()
            undo.callback(pipe.close)
            with theirs, stderr:
                process = await asyncio.create_subprocess_exec(
                    *_command(theirs.fileno()),
                    pass_fds=[theirs.fileno()],
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=stderr,
                    start_new_session=True,
                    env=_environment(private, temporary.parent),
                )
            undo.pop_all()
        ours.setblocking(False)
        return cls(process, private, temporary, clock or SystemClock(), (pipe, words)), ours

    async def equip(self) -> None:
        """Give it the kernels that are kept now: before it hears which model it is for. Where there
        is no thread for that it has to do without.
        """
        lent, loop = asyncio.Event(), asyncio.get_running_loop()
        if _begun(partial(self._lend, loop, lent), f"lend {self.pid}"):
            await lent.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def current(self) -> bool:
        """Whether one that is started now would be the same: no other MLX has been installed since,
        and its folder is there.
        """
        return self._kernels == kernels_of(self._temporary) and self._private.is_dir()

    @property
    def stderr(self) -> str:
        """The last that it said."""
        return self._words.tail.decode("utf-8", "replace")

    @property
    def suspended(self) -> bool:
        """A signal has stopped it, and none has let it go on."""
        try:
            return bool(psutil.Process(self.pid).status() == psutil.STATUS_STOPPED)
        except (psutil.Error, OSError):  # gone, or there is no file to look with
            return False

    def signal(self, number: signal.Signals) -> None:
        """To its whole group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    async def gone(self, timeout: float) -> bool:
        """Wait for its end; False when it does not come in time."""
        try:
            async with within(self._clock, timeout):
                await asyncio.shield(self.ended)
        except TimeoutError:
            return False
        return True

    async def cleared(self, timeout: float) -> bool:
        """Wait until what it leaves is gone, too; False when that takes longer."""
        try:
            async with within(self._clock, timeout):
                return await self._cleared.wait()
        except TimeoutError:
            return False

    async def _reap(self) -> int:
        status = await self._process.wait()
        self.signal(signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STDERR_SECONDS):
                await self._words.over.wait()
        self._pipe.close()
        clear = partial(self._clear, asyncio.get_running_loop(), ended_well=status == 0)
        _begun(clear, f"clear {self.pid}")  # else it goes with the folder of all workers
        return status

    def _lend(self, loop: asyncio.AbstractEventLoop, lent: asyncio.Event) -> None:
        """In a thread of its own: an executor's would be waited for at the daemon's end."""
        try:
            self._kernels.lend(self._private)
        finally:
            with contextlib.suppress(RuntimeError):  # the daemon is over
                loop.call_soon_threadsafe(lent.set)

    def _clear(self, loop: asyncio.AbstractEventLoop, *, ended_well: bool) -> None:
        """In a thread of its own: the disk may hang, and nobody waits for that."""
        try:
            self._kernels.keep(self._private, ended_well=ended_well)
            self._remove()
        finally:
            with contextlib.suppress(RuntimeError):  # the daemon is over
                loop.call_soon_threadsafe(self._cleared.set)
        self._reap_orphans()

    def _reap_orphans(self) -> None:
        """What it had started, in its group: where the daemon is the first process of a container
        that is the daemon's child now, and nobody else takes its end. One that cannot end is waited
        for.
        """
        with contextlib.suppress(ChildProcessError):  # there is none
            while True:
                os.waitpid(-self.pid, 0)

    def _remove(self) -> None:
        for pause in (0.0, *_AGAIN_SECONDS):
            time.sleep(pause)
            _remove(self._private, self._temporary)
            if self._private == self._temporary or not self._private.exists():
                return


def _begun(work: Callable[[], None], name: str) -> bool:
    """In a thread; False: the system has none for it."""
    try:
        threading.Thread(target=work, name=name, daemon=True).start()
    except RuntimeError:
        return False
    return True


def _sockets() -> tuple[socket.socket, socket.socket]:
    pair = socket.socketpair()
    for end in pair:
        if end.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < _SOCKET_BYTES:
            with contextlib.suppress(OSError):  # more than the system lets anybody have
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
    return pair


async def _pipe() -> tuple[asyncio.ReadTransport, _Words, IO[bytes]]:
    """One that is read from here, and its other end. asyncio's own would have the end of a process
    wait for whoever still holds that.
    """
    mine, theirs = os.pipe()
    stderr = os.fdopen(theirs, "wb", 0)
    transport, words = await asyncio.get_running_loop().connect_read_pipe(
        _Words, os.fdopen(mine, "rb", 0)
    )
    return transport, words, stderr


def _private_folder(temporary: Path) -> Path:
    """Mode 0700. What a cleaner took away meanwhile is made again.

    When the disk is full it is elsewhere, or the folder of all workers: no stranger reads that.
    Raises OSError.
    """
    with contextlib.suppress(OSError):
        temporary.mkdir(mode=0o700, parents=True, exist_ok=True)
    for place in _places(temporary):
        with contextlib.suppress(OSError):
            if shutil.disk_usage(place).free >= _ROOM:
                return Path(tempfile.mkdtemp(prefix="worker-", dir=place))
    if not temporary.is_dir():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return temporary


def _places(temporary: Path) -> Iterator[Path]:
    """Where a worker's own folder may be, the best first."""
    yield temporary
    with contextlib.suppress(OSError):
        yield Path(tempfile.gettempdir())
    yield Path("/dev/shm")


def kernels_of(temporary: Path) -> Kernels:
    """Beside what goes with the workers."""
    return Kernels(temporary.with_name(_KERNELS))


def _remove(private: Path, temporary: Path) -> None:
    if private != temporary:
        shutil.rmtree(private, ignore_errors=True)


def launch_of(
    spec: ModelSpec, temporary: Path, budget: Budget | None = None, known: Known = UNKNOWN
) -> Launch:
    """What an engine process is told first."""
    return Launch(
        path=spec.path,
        context=spec.context,
        adapter=spec.adapter,
        chat_template=spec.chat_template,
        trust_remote_code=spec.trust_remote_code,
        kv_bits=spec.kv_bits,
        draft=spec.draft,
        draft_tokens=spec.draft_tokens,
        budget=budget,
        turns=bytes(temporary / _TURNS),
        footprint=known.footprint,
        measured=known.measured,
        held=known.held,
        prefixes=known.prefixes,
    )


def _command(fd: int) -> list[str]:
    """-P: the folder that the daemon was started in is no place to import from."""
    return [sys.executable, "-P", "-m", "mlxd.worker", "--fd", str(fd)]


def protocol_of_fresh() -> int | None:
    """What a process that is started now will speak, by the files on disk, which an upgrade may
    have replaced; None: they do not say. Raises OSError where there is nothing to start.
    """
    Path(sys.executable).stat()
    said = _PROTOCOL.search(Path(messages.__file__).read_bytes())
    return int(said[1]) if said else None


def _environment(private: Path, state: Path) -> dict[str, str]:
    """The daemon's, with a TMPDIR of its own: MLX may compile kernels into it, under names that
    anybody can predict.
    """
    kept = {key: value for key, value in os.environ.items() if key not in _DEAF}
    return kept | {
        "TMPDIR": str(private),
        WORKER_OF: os.path.realpath(state),
        VARIABLE: str(Kernels.own(private)),
        "PYTHONUNBUFFERED": "1",
    }
