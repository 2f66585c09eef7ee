"""Traffic logs of days that never were: what happened in them is worked out here, simply, by a
daemon with so many slots and one line.
"""

from __future__ import annotations

import heapq
import random
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxd.policy.load import Override, load
from mlxd.policy.policy_set import PolicySet
from mlxd.telemetry.traffic import FILE, SCHEMA, Known, Line, Opening, Request, encode

ZERO = 1_800_000_000.0
"""When every such day begins."""


def policies(values: Mapping[str, str]) -> PolicySet:
    """The defaults, but for these values by their keys, in YAML."""
    return load(None, [Override(key, text, "a test", True) for key, text in values.items()])


def opening(**facts: Any) -> Opening:
    known = {"tiny": Known(bytes=2**20, seconds=1.0, loaded=True)}
    plain: dict[str, Any] = {
        "schema": SCHEMA,
        "mlxd": "1",
        "at": ZERO,
        "memory": 0,
        "salt": "s",
        "models": known,
    }
    return Opening(**(plain | facts))


def write(file: Path, lines: Iterable[Line], first: Opening | None = None) -> Path:
    """A log with these lines; a folder gets the file that a daemon would write there."""
    if file.is_dir():
        file = file / FILE
    file.write_bytes(b"".join(map(encode, [first or opening(), *lines])))
    return file


def served(at: float, **facts: Any) -> Request:
    """One that had a slot at once, its model in memory, and an answer of 20 tokens in 2 s."""
    plain: dict[str, Any] = {
        "at": ZERO + at, "model": "tiny", "want": "answer", "status": 200, "judged": 0.0,
        "waited": 0.0, "ttft": 0.5, "held": 2.5, "lasted": 2.5, "prompt": 30, "completion": 20,
        "cost": 50.0, "address": "a",
    }  # fmt: skip
    return Request(**(plain | facts))


def refused(at: float, code: str = "rate_limited", status: int = 429, **facts: Any) -> Request:
    plain: dict[str, Any] = {
        "at": ZERO + at, "model": "tiny", "want": "answer", "status": status, "code": code,
        "judged": 0.0, "cost": 50.0, "address": "a",
    }  # fmt: skip
    return Request(**(plain | facts))


@dataclass(frozen=True, slots=True)
class House:
    """A daemon with one model. Where one waits, all are one client's: they go in their order."""

    slots: int = 2
    max_waiting: int = 3
    clients: str = "a"
    """Their addresses; where one may wait there is one of them."""
    queue: float = 4.0
    requests: int = 30
    window: float = 60.0
    gap: float = 1.2
    """Seconds between two requests, on average."""

    def policies(self) -> PolicySet:
        return policies(
            {
                "limits.concurrency.max_in_flight": f"{self.slots}",
                "limits.concurrency.max_waiting": f"{self.max_waiting}",
                "limits.rate_limit": (f"[{{requests: {self.requests}, window: {self.window:g}s}}]"),
                "timeouts.queue": f"{self.queue:g}s",
            }
        )


@dataclass(slots=True)
class _Asks:
    at: float
    who: str
    first: float
    decode: float
    tokens: int
    patience: float


def day(house: House, seed: int, count: int) -> list[Request]:
    """So many requests, in bursts, and what became of each."""
    rng = random.Random(seed)
    asks: list[_Asks] = []
    now = 0.0
    for _ in range(count):
        now = round(now + rng.expovariate(1 / house.gap) * rng.choice((0.1, 0.1, 2.8)), 6)
        asks.append(
            _Asks(
                now, rng.choice(house.clients), round(rng.uniform(0.1, 1.0), 6),
                round(rng.uniform(0.5, 3.0), 6), rng.randrange(8, 60),
                round(rng.uniform(0.5, 3.0), 6) if rng.random() < 0.1 else 1e6,
            )
        )  # fmt: skip
    return _lived(house, asks)


def _lived(house: House, asks: Sequence[_Asks]) -> list[Request]:
    """One line, so many places in it; who has waited too long, or lost patience, goes."""
    counted: dict[str, deque[float]] = defaultdict(deque)
    running: list[float] = []
    line: deque[_Asks] = deque()
    found: list[Request] = []

    def begin(one: _Asks, now: float) -> None:
        ends = now + one.first + one.decode
        left = one.at + one.patience < ends
        ends = min(ends, one.at + one.patience)
        heapq.heappush(running, ends)
        ttft = now + one.first - one.at
        found.append(
            served(
                one.at, address=one.who, waited=now - one.at, completion=one.tokens,
                ttft=ttft if now + one.first <= ends else None, held=ends - now,
                lasted=ends - one.at, status=499 if left else 200,
            )
        )  # fmt: skip

    def until(moment: float) -> None:
        """Whatever happens before somebody comes."""
        while True:
            goes = min(line, key=_gone_by(house), default=None)
            gone = _gone_by(house)(goes) if goes is not None else moment + 1
            ends = running[0] if running else moment + 1
            if min(gone, ends) > moment:
                return
            if goes is not None and gone < ends:
                line.remove(goes)
                found.append(_gave_up(goes, house))
                continue
            heapq.heappop(running)
            if line:
                begin(line.popleft(), ends)

    for one in asks:
        until(one.at)
        times = counted[one.who]
        while times and times[0] <= one.at - house.window:
            times.popleft()
        if len(times) >= house.requests:
            found.append(refused(one.at, address=one.who))
            continue
        times.append(one.at)
        if len(running) < house.slots:
            begin(one, one.at)
        elif len(line) < house.max_waiting:
            line.append(one)
        else:
            code = "queue_full" if house.max_waiting else "overloaded"
            found.append(refused(one.at, code, 503, address=one.who))
    until(1e9)
    return sorted(found, key=lambda one: one.at)


def _gone_by(house: House) -> Any:
    return lambda one: one.at + min(house.queue, one.patience)


def _gave_up(one: _Asks, house: House) -> Request:
    if one.patience < house.queue:
        return refused(one.at, "", 499, address=one.who, lasted=one.patience)
    return refused(one.at, "queue_timeout", 503, address=one.who, lasted=house.queue)
