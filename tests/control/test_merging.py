"""Several generations of one call, read as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import pytest

from mlxd.control.merging import AT_ONCE, closing_all, merged
from mlxd.core.errors import WorkerCrashed
from mlxd.core.events import Burst, TextDelta


class Source:
    """One generation, which notes what becomes of it."""

    def __init__(self, *texts: str, error: Exception | None = None) -> None:
        self._texts = texts
        self._error = error
        self.begun = self.over = False

    async def bursts(self) -> AsyncIterator[Burst]:
        self.begun = True
        try:
            for text in self._texts:
                await asyncio.sleep(0)
                yield [TextDelta(text)]
            if self._error is not None:
                raise self._error
        finally:
            self.over = True


async def test_each_keeps_its_order_and_its_number() -> None:
    sources = [Source("a", "b", "c"), Source(), Source("x", "y")]
    got: dict[int, str] = {}
    async for number, burst in merged([source.bursts() for source in sources]):
        got[number] = got.get(number, "") + "".join(event.text for event in burst)  # type: ignore[union-attr]
    assert got == {0: "abc", 2: "xy"}


async def test_the_first_failure_ends_them_all() -> None:
    sources = [Source(*"abc" * 1000), Source("x", error=WorkerCrashed("it died"))]
    with pytest.raises(WorkerCrashed, match="it died"):
        async for _ in merged([source.bursts() for source in sources]):
            pass
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_reader_that_leaves_ends_them_all() -> None:
    sources = [Source(*"abc" * 1000) for _ in range(3)]
    async with aclosing(merged([source.bursts() for source in sources])) as bursts:
        await anext(bursts)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_what_a_reader_that_leaves_has_not_got_is_given_back_in_order() -> None:
    for takes in range(1, 6):
        sources = [Source(*"abcdefgh"), Source(*"ABCDEFGH")]
        got, back = {0: "", 1: ""}, {0: "", 1: ""}

        def unread(number: int, burst: Burst, back: dict[int, str] = back) -> None:
            back[number] += "".join(event.text for event in burst)  # type: ignore[union-attr]

        async with aclosing(merged([one.bursts() for one in sources], unread)) as bursts:
            for _ in range(takes):
                number, burst = await anext(bursts)
                got[number] += "".join(event.text for event in burst)  # type: ignore[union-attr]
            for _ in range(20):
                await asyncio.sleep(0)  # others read on meanwhile
        assert "abcdefgh".startswith(got[0] + back[0])
        assert "ABCDEFGH".startswith(got[1] + back[1])
        assert len(back[0] + back[1]) >= 2, "one in the queue, one of who waits to say more"


async def test_only_so_many_run_together() -> None:
    sources = [Source(*"ab") for _ in range(AT_ONCE + 5)]
    most = 0
    async for _ in merged([source.bursts() for source in sources]):
        most = max(most, sum(source.begun and not source.over for source in sources))
    assert most == AT_ONCE
    assert all(source.over for source in sources)


async def test_they_are_closed_all_at_once() -> None:
    waiting = 0

    async def slow() -> AsyncGenerator[Burst, None]:
        nonlocal waiting
        try:
            yield [TextDelta("x")]
        finally:
            waiting += 1
            for _ in range(100):
                if waiting == 3:
                    break
                await asyncio.sleep(0)
            else:
                raise AssertionError(waiting)

    each = [slow() for _ in range(3)]
    async with closing_all(each):
        for one in each:
            await anext(one)
    assert waiting == 3
