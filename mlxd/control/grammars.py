"""Has the grammars of requests judged before those are admitted: a bad one takes no slot.

A process of its own judges them (mlxd/grammar), one at a time and of each client in its turn; it
starts with the first and ends when none has come for a while. What it found of each is remembered;
what kept it from finding anything is not, and such a request may come again.
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
from functools import partial

from mlxd.control.turns import Turns
from mlxd.core.clock import Clock, within
from mlxd.core.errors import InvalidRequest, Overloaded
from mlxd.core.request import GenerationRequest, Json
from mlxd.core.threads import Threads
from mlxd.grammar.__main__ import question
from mlxd.grammar.source import is_held

log = logging.getLogger(__name__)

KEPT = 1024
"""Verdicts that are remembered."""
MOST_WAITING = 32
MOST_OF_ONE_CLIENT = 8
"""Of those that wait."""
CORE_SECONDS = 1.0
"""Of the process, for one verdict."""
PATIENCE_SECONDS = 10.0
"""On the clock, for the same."""
IDLE_SECONDS = 60.0
_OWN_DEATHS = (-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS)
"""Of the question: for want of memory or stack, which it has little of. Others kill otherwise."""
_threads = Threads("schemas")
_PASSED_ON = ("PATH", "PYTHONPATH", "PYTHONHOME", "LANG", "LC_ALL", "TMPDIR")


@dataclass(frozen=True, slots=True)
class _Verdict:
    words: str
    """Empty: nothing is wrong with it."""
    param: str = ""


@dataclass(slots=True, eq=False)
class _Question:
    """A grammar without a verdict."""

    asked: bytes
    param: str
    client: str
    """Who asked first."""
    task: asyncio.Task[_Verdict] | None = None
    waiting: int = 0
    begun: bool = False

    def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()


class Grammars:
    """Raises what is wrong with a request's grammar, in the validator's words."""

    def __init__(
        self,
        clock: Clock,
        core_seconds: float = CORE_SECONDS,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self._clock = clock
        self._patience = patience
        self._core_seconds = core_seconds
        self._known: OrderedDict[bytes, _Verdict] = OrderedDict()
        self._process: Process | None = None
        self._turns = Turns()
        self._writing = asyncio.Lock()
        self._questions: dict[bytes, _Question] = {}
        """Those without a verdict yet."""
        self._idle: asyncio.TimerHandle | None = None
        self._ending: asyncio.Task[None] | None = None

    async def check(self, request: GenerationRequest, client: str = "") -> None:
        """Raises InvalidRequest; Overloaded, when it cannot be judged now."""
        if request.want != "answer" or not is_held(request):
            return
        async with self._writing:
            key, asked = await _threads.run_or_here(_question, request)
        verdict = self._known.get(key)
        if verdict is None:
            verdict = await self._judged(key, _Question(asked, _param(request), client))
        else:
            self._known.move_to_end(key)
        if verdict.words:
            raise InvalidRequest(verdict.words, param=verdict.param)

    async def close(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        for waiting in self._questions.values():
            waiting.stop()
        await self._end()

    async def _judged(self, key: bytes, question: _Question) -> _Verdict:
        """Who asks the same meanwhile waits for the same verdict. One that nobody waits for any
        more goes on only if it has begun.
        """
        found = self._questions.get(key)
        if found is None:
            self._check_room(question.client)
            found = self._questions[key] = question
            found.task = asyncio.create_task(self._in_turn(key, found), name="judge a grammar")
            found.task.add_done_callback(partial(self._over, key))
        assert found.task is not None
        found.waiting += 1
        try:
            return await asyncio.shield(found.task)
        finally:
            found.waiting -= 1
            if not found.waiting and not found.begun:
                found.stop()
                self._questions.pop(key, None)

    def _check_room(self, client: str) -> None:
        """Raises Overloaded."""
        own = sum(waiting.client == client for waiting in self._questions.values())
        if len(self._questions) >= MOST_WAITING or own >= MOST_OF_ONE_CLIENT:
            raise Overloaded(
                "too many schemas wait to be judged",
                retry_after=1.0,
                numbers={"waiting": len(self._questions), "waiting_of_client": own},
                would_pass="the same request once some of them are judged",
            )

    def _over(self, key: bytes, task: asyncio.Task[_Verdict]) -> None:
        found = self._questions.get(key)
        if found is not None and found.task is task:
            del self._questions[key]
        if not task.cancelled():
            task.exception()  # whoever waits is told; perhaps nobody does

    async def _in_turn(self, key: bytes, question: _Question) -> _Verdict:
        async with self._turns.turn(question.client):
            question.begun = True
            if self._idle is not None:
                self._idle.cancel()
            try:
                return await self._ask(key, question)
            finally:
                loop = asyncio.get_running_loop()
                self._idle = loop.call_later(IDLE_SECONDS, self._end_idle)

    async def _ask(self, key: bytes, question: _Question) -> _Verdict:
        """A verdict is remembered; where there can be no process the worker judges. Raises
        Overloaded.
        """
        try:
            told = await self._told(question.asked)
        except OSError as error:
            log.warning("no process to judge grammars: %s", error.strerror)
            return _Verdict("")
        param = question.param
        if told is None:
            words = f"{param}: it is too complex, and takes too long to compile"
            verdict = _Verdict(words, param)
        else:
            verdict = _Verdict(told["words"], told.get("param", ""))
        self._known[key] = verdict
        if len(self._known) > KEPT:
            self._known.popitem(last=False)
        return verdict

    async def _told(self, asked: bytes, *, again: bool = True) -> Json | None:
        """None where the process says that it is too complex, or dies of that: one that was there
        already may have died of anything. Raises Overloaded where something else came between, and
        did so `again`.
        """
        new = self._process is None
        process = self._process = self._process or await _started(self._core_seconds)
        answer, late = b"", True
        with contextlib.suppress(TimeoutError):
            async with within(self._clock, self._patience):
                answer = await _answer(process, asked)
                late = False
        if answer.endswith(b"\n"):
            told: Json | None = json.loads(answer)
            return told
        await self._end()
        if process.returncode == -signal.SIGPROF or (new and process.returncode in _OWN_DEATHS):
            return None
        if late or (new and not again):
            log.warning("a schema could not be judged: the process ended with %s%s",
                        process.returncode, ", as it took too long" if late else "")  # fmt: skip
            raise Overloaded(
                "the schema could not be judged in time",
                retry_after=1.0,
                would_pass="the same request again, or a simpler schema",
            )
        return await self._told(asked, again=not new)

    def _end_idle(self) -> None:
        if not self._questions:
            self._ending = asyncio.create_task(self._end(), name="end the judge of grammars")

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            await _ended(process)


def _question(request: GenerationRequest) -> tuple[bytes, bytes]:
    """Its key, and the line. Raises InvalidRequest for what is no JSON."""
    try:
        asked = question(request) + b"\n"
    except (UnicodeEncodeError, ValueError, TypeError, RecursionError) as error:
        raise InvalidRequest(
            f"the schema cannot be read: {error}", param=_param(request)
        ) from error
    return hashlib.sha256(asked).digest(), asked


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
    if process.stdin.is_closing():  # it has been gone for a while: uvloop raises for a write
        return b""
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
