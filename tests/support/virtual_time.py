"""An event loop on which time passes only when there is nothing else to do, and then at once."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")
EPOCH = 1_700_000_000.0


class Stuck(AssertionError):
    """Somebody waits for what can never happen."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """Also a `Clock`. What would wait for ever raises Stuck."""

    def __init__(self) -> None:
        self.now = 1000.0
        super().__init__(_Selector(self))
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return EPOCH + self.now

    def turn(self) -> None:
        """Run once what is ready; no time passes."""
        self.call_soon(self.stop)
        self.run_forever()

    def settle(self, turns: int = 20) -> None:
        for _ in range(turns):
            self.turn()

    def advance(self, seconds: float) -> None:
        """Let time pass, with everything that happens in it."""
        self.run_until_complete(asyncio.sleep(seconds))

    def run(self, work: Awaitable[T]) -> T:
        return self.run_until_complete(work)

    def do(self, call: Callable[..., T], *args: Any) -> T:
        """Call a function as if from the loop."""

        async def made() -> T:
            return call(*args)

        return self.run(made())


class _Selector(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(0)
        if found or timeout == 0:
            return found
        if timeout is None:
            raise Stuck("nothing is left that could happen")
        self._loop.now += max(timeout, 0.0)
        return found

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return super().get_map()
