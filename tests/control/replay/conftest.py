from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.replays import World
from tests.support.virtual_time import VirtualLoop


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    made = VirtualLoop()
    asyncio.set_event_loop(made)
    yield made

    async def clear() -> None:
        """A task that is cancelled may begin another, which waits for the worker's word."""
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    made.run(clear())
    made.run(made.shutdown_asyncgens())
    made.close()
    asyncio.set_event_loop(None)


@pytest.fixture
def world(loop: VirtualLoop, tmp_path: Any) -> World:
    return World(loop, tmp_path)
