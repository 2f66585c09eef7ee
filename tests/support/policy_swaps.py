"""Clients who note what each answer tells of the policies while these are swapped under them.

Each edit sets several values that must fit together. An answer names its generation, and must tell
the values of that one and of no other.
"""

from __future__ import annotations

import http.client
import json
import re
import threading
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from tests.support.daemon import Daemon

Json = dict[str, Any]
_QUOTA = re.compile(r"q=(\d+);w=(\d+)")
_RATE = re.compile(r"Max (\d+) requests per ([\d.]+) seconds")
_SLOTS = re.compile(r"Max (\d+) concurrent requests")
_READERS = 4
_ASKERS = 3
_ASKED_TOKENS = 8
_BY_THE_WATCHER = 4
"""Every so many edits are left to the watcher alone."""
_WATCHED_SECONDS = 10.0


@dataclass(frozen=True)
class Values:
    """What one edit sets."""

    slots: int
    requests: int
    window: float
    output: int

    @classmethod
    def of(cls, number: int) -> Values:
        """Small limits, so that some are refused; neighbours have nothing in common."""
        step = 1 + number % 5
        return cls(step, 4 + step, 1.0 + step / 10, 1 + step)

    def text(self) -> str:
        """As limits.yaml has it, below its `schema:` line."""
        return (
            f"concurrency: {{max_in_flight: {self.slots}}}\n"
            f"rate_limit: [{{requests: {self.requests}, window: {self.window * 1000:.0f}ms}}]\n"
            f"tokens: {{max_output: {self.output}}}\n"
        )


@dataclass(frozen=True)
class Told:
    """What one answer told: the generation, and those of the values that it shows."""

    kind: str
    generation: int
    values: Mapping[str, float]

    def fits(self, values: Values) -> bool:
        return all(
            round(float(value), 6) == getattr(values, name) for name, value in self.values.items()
        )


@dataclass
class Swaps:
    """What became of a run."""

    values: dict[int, Values]
    """Of each generation."""
    told: list[Told] = field(default_factory=list)
    backwards: int = 0
    """Answers on one connection under an older generation than the answer before."""

    @property
    def kinds(self) -> Counter[str]:
        return Counter(told.kind for told in self.told)

    def misfits(self) -> list[Told]:
        """Answers that told values of another generation than the one they named."""
        return [told for told in self.told if not told.fits(self.values[told.generation])]


def swap(daemon: Daemon, model: str, *, swaps: int, requests: int) -> Swaps:
    """Edit limits.yaml `swaps` times while at least `requests` are answered.

    The daemon has `Values.of(0)` in force; the model must not end by itself.
    """
    run = Swaps({daemon.generation(): Values.of(0)})
    clients = _Clients(daemon.port, model, run)
    with ThreadPoolExecutor(_READERS + _ASKERS) as pool:
        loops = [pool.submit(clients.read) for _ in range(_READERS)]
        loops += [pool.submit(clients.ask) for _ in range(_ASKERS)]
        try:
            for number in range(1, swaps + 1):
                clients.wait_for(requests * number // swaps)
                _put_in_force(daemon, number, run)
        finally:
            clients.stop.set()
        for loop in loops:
            loop.result()
    return run


def _put_in_force(daemon: Daemon, number: int, run: Swaps) -> None:
    """By the admin side, or by nobody but the watcher; it is the next generation either way."""
    last = max(run.values)
    values = Values.of(number)
    run.values[last + 1] = values
    daemon.edit("limits", values.text())
    if number % _BY_THE_WATCHER == 0:
        found = daemon.wait_for_generation(last, within=_WATCHED_SECONDS)
    else:
        outcome = daemon.reload()
        assert outcome["result"] in ("applied", "unchanged"), outcome
        found = outcome["generation"]
    assert found == last + 1, f"edit {number} is generation {found}, not {last + 1}"


class _Clients:
    """Loops that ask until they are stopped; each has a connection of its own."""

    def __init__(self, port: int, model: str, run: Swaps) -> None:
        self._port = port
        self._body = json.dumps(
            {
                "model": model, "prompt": "swap", "stream": False,
                "options": {"temperature": 0, "num_predict": _ASKED_TOKENS},
            }
        )  # fmt: skip
        self._run = run
        self._more = threading.Condition()
        self.stop = threading.Event()

    def wait_for(self, count: int) -> None:
        """Until that many answers have come."""
        with self._more:
            enough = self._more.wait_for(lambda: len(self._run.told) >= count, timeout=60)
        assert enough, f"{len(self._run.told)} answers instead of {count}"

    def read(self) -> None:
        self._loop("GET", "/health", None, _told_by_health)

    def ask(self) -> None:
        self._loop("POST", "/api/generate", self._body, _told_by_answer)

    def _loop(self, method: str, path: str, body: str | None, told: Any) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        newest = 0
        while not self.stop.is_set():
            connection.request(method, path, body)
            response = connection.getresponse()
            found: Told = told(response, json.loads(response.read()))
            self._note(found, newest)
            newest = max(newest, found.generation)
        connection.close()

    def _note(self, told: Told, newest: int) -> None:
        with self._more:
            self._run.told.append(told)
            self._run.backwards += told.generation < newest
            self._more.notify_all()


def _told_by_health(response: http.client.HTTPResponse, body: Json) -> Told:
    assert response.status == 200
    assert body["policy"]["generation"] == _generation(response)
    rate = body["rate_limit"]
    values = {
        "slots": body["max_concurrent"],
        "requests": rate["max_per_window"],
        "window": rate["window_seconds"],
    }
    return Told("health", _generation(response), values)


def _told_by_answer(response: http.client.HTTPResponse, body: Json) -> Told:
    """Headers have the window in whole seconds; the message of a refusal has it exactly."""
    quota = _QUOTA.search(response.headers["RateLimit-Policy"])
    assert quota is not None
    values: dict[str, float] = {"requests": int(quota[1])}
    if response.status == 200:
        values["output"] = body["eval_count"]
        return Told("answered", _generation(response), values)
    if rate := _RATE.search(body["error"]):
        assert response.status == 429
        assert int(rate[1]) == int(quota[1])
        values["window"] = float(rate[2])
        return Told("over the rate", _generation(response), values)
    slots = _SLOTS.search(body["error"])
    assert response.status == 503, body
    assert slots is not None, body
    return Told("no slot", _generation(response), values | {"slots": int(slots[1])})


def _generation(response: http.client.HTTPResponse) -> int:
    return int(response.headers["X-Mlxd-Policy"])
