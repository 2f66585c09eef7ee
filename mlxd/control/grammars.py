"""Has the grammars of requests judged before those are admitted: a bad one takes no slot.

A process of its own judges them (mlxd/grammar), one at a time; it starts with the first and ends
when none has come for a while. What it found of each is remembered.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import OrderedDict
from dataclasses import dataclass

from mlxd.core.clock import Clock, within
from mlxd.core.errors import InvalidRequest, Overloaded
from mlxd.core.request import GenerationRequest, Json
from mlxd.grammar.__main__ import question
from mlxd.grammar.source import is_held

log = logging.getLogger(__name__)

KEPT = 1024
"""Verdicts that are remembered."""
MOST_WAITING = 32
CORE_SECONDS = 1.0
"""Of the process, for one verdict."""
PATIENCE_SECONDS = 10.0
"""On the clock, for the same."""
IDLE_SECONDS = 60.0
_PASSED_ON = ("PATH", "PYTHONPATH", "PYTHONHOME", "LANG", "LC_ALL", "TMPDIR")


@dataclass(frozen=True, slots=True)
class _Verdict:
    words: str
    """Empty: nothing is wrong with it."""
    param: str = ""


class Grammars:
    """Raises what is wrong with a request's grammar, in the validator's words."""

    def __init__(self, clock: Clock, core_seconds: float = CORE_SECONDS) -> None:
        self._clock = clock
        self._core_seconds = core_seconds
        self._known: OrderedDict[bytes, _Verdict] = OrderedDict()
        self._process: Process | None = None
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[_Verdict]] = set()
        self._idle: asyncio.TimerHandle | None = None
        self._ending: asyncio.Task[None] | None = None

    async def check(self, request: GenerationRequest) -> None:
        """Raises InvalidRequest; Overloaded, when too many wait to be judged."""
        if request.want != "answer" or not is_held(request):
            return
        asked = _question(request)
        key = hashlib.sha256(asked).digest()
        verdict = self._known.get(key) or await self._judged(asked, _param(request))
        self._known[key] = verdict
        self._known.move_to_end(key)
        if len(self._known) > KEPT:
            self._known.popitem(last=False)
        if verdict.words:
            raise InvalidRequest(verdict.words, param=verdict.param)

    async def close(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        for task in self._tasks:
            task.cancel()
        await self._end()

    async def _judged(self, asked: bytes, param: str) -> _Verdict:
        """To the end, whoever gives up waiting: others' questions come behind it."""
        if len(self._tasks) >= MOST_WAITING:
            raise Overloaded("too many schemas wait to be judged", retry_after=1.0)
        task = asyncio.create_task(self._in_turn(asked, param), name="judge a grammar")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def _in_turn(self, asked: bytes, param: str) -> _Verdict:
        async with self._turn:
            if self._idle is not None:
                self._idle.cancel()
            try:
                return await self._ask(asked, param)
            finally:
                loop = asyncio.get_running_loop()
                self._idle = loop.call_later(IDLE_SECONDS, self._end_idle)

    async def _ask(self, asked: bytes, param: str) -> _Verdict:
        """Where there can be no process the worker judges."""
        try:
            told = await self._told(asked)
        except OSError as error:
            log.warning("no process to judge grammars: %s", error.strerror)
            return _Verdict("")
        if told is None:
            return _Verdict(f"{param}: it is too complex, and takes too long to compile", param)
        return _Verdict(told["words"], told.get("param", ""))

    async def _told(self, asked: bytes) -> Json | None:
        """None where it takes too long, or a new process dies of it: one that was there already may
        die of anything.
        """
        new = self._process is None
        process = self._process = self._process or await _started(self._core_seconds)
        answer, late = b"", True
        with contextlib.suppress(TimeoutError):
            async with within(self._clock, PATIENCE_SECONDS):
                answer = await _answer(process, asked)
                late = False
        if answer.endswith(b"\n"):
            told: Json = json.loads(answer)
            return told
        await self._end()
        if new or late or process.returncode == -signal.SIGPROF:
            return None
        return await self._told(asked)

    def _end_idle(self) -> None:
        if not self._tasks:
            self._ending = asyncio.create_task(self._end(), name="end the judge of grammars")

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            await _ended(process)


def _question(request: GenerationRequest) -> bytes:
    """Raises InvalidRequest for what is no JSON."""
    try:
        return question(request).encode() + b"\n"
    except (UnicodeEncodeError, ValueError, TypeError, RecursionError) as error:
        raise InvalidRequest(
            f"the schema cannot be read: {error}", param=_param(request)
        ) from error


def _param(request: GenerationRequest) -> str:
    if request.tool_choice.required:
        return "tools"
    return "format" if request.format is not None else "pattern"


async def _started(core_seconds: float) -> Process:
    """-P: the folder that the daemon was started in is no place to import from."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "mlxd.grammar", f"{core_seconds:g}"),
        stdin=PIPE, stdout=PIPE, stderr=DEVNULL, start_new_session=True,
        env={key: value for key in _PASSED_ON if (value := os.environ.get(key)) is not None},
    )  # fmt: skip


async def _answer(process: Process, asked: bytes) -> bytes:
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(OSError):  # it is gone: there is no answer either
        process.stdin.write(asked)
        await process.stdin.drain()
    return await process.stdout.readline()


async def _ended(process: Process) -> None:
    """It may have ended already, or be about to: how it ended is then its own."""
    if process.stdout is None or not process.stdout.at_eof():
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    await process.wait()
