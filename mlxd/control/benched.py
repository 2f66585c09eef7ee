"""How fast models were when `mlxd bench` measured them, in a file that outlives the daemon.

Nothing here ever fails for its caller: a file that cannot be read is set aside, one that cannot be
written is logged. What other versions of the engine or another machine have measured is kept, for
they may come back, and not used.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import msgspec

from mlxd.control.forecast import engine, key_of
from mlxd.core import aside, durable
from mlxd.core.clock import Clock
from mlxd.core.machine import machine
from mlxd.core.models import ModelCard
from mlxd.core.threads import Threads

FILE = "bench.json"
SCHEMA = 1
MOST_MODELS = 100
MOST_POINTS = 32
"""Of one model: lengths of prompts, and numbers of streams."""
_MOST_BYTES = 4 * 2**20
_MOST_COUNT = 2**32
_MOST_RATE = 1e9
_log = logging.getLogger(__name__)

Points = Sequence[tuple[int, float]]
"""Tokens per second, each at a length of prompt or a number of streams."""


class Bench(msgspec.Struct, frozen=True):
    """What was measured of one model. Both lists rise, and neither is empty."""

    at: float
    """Seconds since the epoch."""
    model: str
    engine: str
    """The versions that were measured."""
    machine: str
    prefill: list[tuple[int, float]]
    """Tokens of a prompt, and how many of them are read in a second."""
    decode: list[tuple[int, float]]
    """Streams, and the tokens per second of all of them together."""

    def read_seconds(self, tokens: float) -> float:
        """Until a prompt of so many is read. A longer one than was measured takes longer yet."""
        return tokens / _between(self.prefill, tokens)

    def decode_seconds(self, tokens: float, streams: int) -> float:
        """For so many of one answer, beside others: `streams` in all."""
        most, rate = self.decode[-1]
        of_all = rate if streams > most else _between(self.decode, streams)
        return tokens * max(1, streams) / of_all


class _File(msgspec.Struct, frozen=True):
    schema: int
    models: dict[str, Bench]


class _Version(msgspec.Struct, frozen=True):
    schema: int


class Benches:
    """Those of one state folder. Used on one event loop; written in a thread."""

    def __init__(self, state: Path, clock: Clock) -> None:
        self._path = state / FILE
        self._clock = clock
        self._threads = Threads("bench")
        self._models = aside.read(self._path, SCHEMA, _decoded, most=_MOST_BYTES) or {}
        self._writing = asyncio.Lock()

    def get(self, card: ModelCard) -> Bench | None:
        """What these versions did on this machine; None: nobody has measured that."""
        found = self._models.get(_key(card))
        return found if found is not None and found.machine == machine() else None

    async def put(self, card: ModelCard, prefill: Points, decode: Points) -> Bench:
        """Remember it, in place of what was measured before; on the disk when this returns, if it
        can be written. Raises ValueError for what nobody can have measured.
        """
        bench = Bench(
            at=self._clock.wall(), model=card.name, engine=engine(), machine=machine(),
            prefill=sorted(prefill), decode=sorted(decode),
        )  # fmt: skip
        if not _possible(bench):
            raise ValueError("expected one rate or more, each above zero, at different counts")
        self._models.pop(_key(card), None)
        self._models[_key(card)] = bench
        for old in list(self._models)[:-MOST_MODELS]:
            del self._models[old]
        async with self._writing:
            content = msgspec.json.encode(_File(SCHEMA, self._models))
            try:
                await self._threads.run(durable.put, self._path, content)
            except OSError as error:  # of the disk, or there is no thread for it
                _log.warning("%s cannot be written: %s", FILE, error.strerror)
        return bench


def _between(points: Points, at: float) -> float:
    """On the line through the points beside `at`; beyond them as at the nearest."""
    below = [point for point in points if point[0] <= at]
    above = [point for point in points if point[0] > at]
    if not below or not above:
        return (below or above)[-1 if below else 0][1]
    (left, low), (right, high) = below[-1], above[0]
    return low + (high - low) * (at - left) / (right - left)


def _key(card: ModelCard) -> str:
    return f"{key_of(card)} {engine()}"


def _decoded(content: bytes) -> dict[str, Bench]:
    aside.check_version(msgspec.json.decode(content, type=_Version).schema, SCHEMA)
    models = msgspec.json.decode(content, type=_File).models
    return {key: bench for key, bench in models.items() if _possible(bench)}


def _possible(bench: Bench) -> bool:
    """Whether arithmetic with it does not fail."""
    return all(_rise(points) for points in (bench.prefill, bench.decode))


def _rise(points: Points) -> bool:
    counts = [count for count, _ in points]
    return (
        0 < len(counts) <= MOST_POINTS
        and all(0 < count < _MOST_COUNT for count in counts)
        and all(math.isfinite(rate) and 0 < rate < _MOST_RATE for _, rate in points)
        and counts == sorted(set(counts))
    )
