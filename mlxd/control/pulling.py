"""The process that pulls, as the daemon sees it: started, read by the line, ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol

from mlxd.core.errors import PullFailed
from mlxd.ipc.pulling import BrokenLine, Failed, Pulled, Told, decode

log = logging.getLogger(__name__)

_LONGEST_LINE = 2**20
_TERM_SECONDS = 5.0
_STDERR_TAIL = 2000
_NOT_ITS = frozenset(
    {"NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_USEC"}
)


class Fetch(Protocol):
    """What `pulling` is."""

    def __call__(
        self, repo: str, into: Path, *, endpoint: str, code: bool
    ) -> AbstractAsyncContextManager[AsyncIterator[Told]]: ...


@asynccontextmanager
async def pulling(
    repo: str, into: Path, *, endpoint: str, code: bool
) -> AsyncIterator[AsyncIterator[Told]]:
    """What a process that pulls `repo` tells of; it is gone when the block ends.

    Raises PullFailed when there can be no such process, or it ends without a verdict.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *_command(repo, into, endpoint, code=code),
            stdin=PIPE, stdout=PIPE, stderr=PIPE,
            limit=_LONGEST_LINE, start_new_session=True, env=_environment(),
        )  # fmt: skip
    except OSError as error:
        raise PullFailed(f"the process that pulls cannot be started: {error.strerror}") from error
    try:
        yield _told(process)
    finally:
        await asyncio.shield(_end(process))


def _command(repo: str, into: Path, endpoint: str, *, code: bool) -> Sequence[str]:
    """-P: the folder that the daemon was started in is no place to import from."""
    return [
        *(sys.executable, "-P", "-m", "mlxd.hub", repo, "--into", str(into)),
        *(("--endpoint", endpoint) if endpoint else ()),
        *(("--code",) if code else ()),
    ]


def _environment() -> dict[str, str]:
    """The daemon's, a token for the hub and proxies included."""
    return {key: value for key, value in os.environ.items() if key not in _NOT_ITS}


async def _told(process: Process) -> AsyncIterator[Told]:
    """To the last word. Raises PullFailed when there is none."""
    assert process.stdout is not None
    assert process.stderr is not None
    complaints = asyncio.create_task(_tail(process.stderr), name=f"stderr {process.pid}")
    try:
        with contextlib.suppress(BrokenLine, ValueError):  # no line, or one without an end
            while line := await process.stdout.readline():
                told = decode(line)
                if isinstance(told, Failed):
                    await _log_end(process, complaints)
                yield told
                if isinstance(told, Pulled | Failed):
                    return
        await _log_end(process, complaints)
        raise PullFailed(
            f"the process that pulls ended without a word (status {process.returncode})"
        )
    finally:
        complaints.cancel()


async def _log_end(process: Process, complaints: asyncio.Task[str]) -> None:
    await _end(process)
    if said := await complaints:
        log.warning("the process that pulls said last: %s", said)


async def _tail(stream: asyncio.StreamReader) -> str:
    last = b""
    while chunk := await stream.read(_STDERR_TAIL):
        last = (last + chunk)[-_STDERR_TAIL:]
    return last.decode("utf-8", "replace")


async def _end(process: Process) -> None:
    """It may have ended already."""
    if process.stdin is not None:
        process.stdin.close()
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TERM_SECONDS):
                await process.wait()
