"""Calls that a disk or a name server may hold up for ever, each in a thread of its own.

Unlike an executor's, such a thread is not waited for when the process ends, and one that hangs
takes nobody else's place.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple, Unpack

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


def in_thread(work: Callable[[Unpack[Ts]], T], *arguments: *Ts) -> asyncio.Future[T]:
    """Start `work`; the future gets what it returns or raises. Giving it up does not stop it.

    A thread costs about 0.1 ms: not for the path of a token. The caller bounds how many there are.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            result = work(*arguments)
        except BaseException as error:  # noqa: BLE001 - it is raised where it is awaited
            _tell(_fail, error)
        else:
            _tell(_finish, result)

    def _finish(result: T) -> None:
        if not future.done():
            future.set_result(result)

    def _fail(error: BaseException) -> None:
        if not future.done():
            future.set_exception(error)

    def _tell(call: Callable[..., None], value: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(call, value)

    threading.Thread(target=run, name=getattr(work, "__name__", "work"), daemon=True).start()
    return future
