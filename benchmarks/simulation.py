"""How true `mlxd policy simulate` is: a real daemon under bursts of traffic is recorded, and then
simulated under the policies that it ran with.

python benchmarks/simulation.py [--minutes 10] [--seed 1] [--keep FOLDER] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import model
from mlxd.daemon.traffic import FOLDER
from mlxd.policy.load import load
from mlxd.simulate.traffic.outcome import Outcome, measured
from mlxd.simulate.traffic.reading import read
from mlxd.simulate.traffic.report import figures_of
from mlxd.simulate.traffic.world import World
from tests.support.daemon import Daemon, daemon

MODELS = ("left", "right")
SLOTS, PLACES = 3, 12
RATE_WINDOW = 10.0
BUSY = ("overloaded", "queue_full", "queue_timeout", "shed")
"""Refusals with 503 that admission gives."""
MOST_BUSY_OFF = 0.01
"""Of all requests."""
MOST_WAIT_OFF = 0.2
"""Of the median wait."""
_LEAST_WAIT_OFF = 0.01
"""Seconds: less is the event loop's own."""
_BURST = 20.0
"""Seconds from the beginning of one burst to that of the next; it lasts half of them."""
_LEAVES = 0.03


@dataclass(frozen=True, slots=True)
class Client:
    """One who asks from an address of its own."""

    address: str
    priority: str
    share: float


CLIENTS = (
    Client("127.0.0.2", "low", 0.25),
    Client("127.0.0.3", "medium", 0.20),
    Client("127.0.0.4", "high", 0.20),
    Client("127.0.0.5", "medium", 0.35),
)
"""The last one asks more often than it may."""


@dataclass(frozen=True, slots=True)
class Ask:
    at: float
    client: Client
    model: str
    tokens: int
    patience: float | None


@dataclass(frozen=True, slots=True)
class Agreement:
    """What the real daemon did, and what the simulated one does."""

    requests: int
    rate_refusals: int
    rate_refusals_simulated: int
    rate_mismatches: int
    """Requests that only one of the two refused for their rate."""
    busy: int
    busy_simulated: int
    wait_p50: float
    wait_p50_simulated: float
    wait_p99: float
    wait_p99_simulated: float
    ttft_p50: float
    ttft_p50_simulated: float

    def problems(self) -> list[str]:
        """Where they are further apart than is promised."""
        found = []
        if self.rate_mismatches:
            found.append(f"{self.rate_mismatches} rate refusals are other requests'")
        if abs(self.busy - self.busy_simulated) > MOST_BUSY_OFF * self.requests:
            found.append(f"503: {self.busy} were, {self.busy_simulated} are simulated")
        off = abs(self.wait_p50 - self.wait_p50_simulated)
        if off > max(_LEAST_WAIT_OFF, MOST_WAIT_OFF * self.wait_p50):
            found.append(
                f"median wait: {self.wait_p50:.3f} s was, {self.wait_p50_simulated:.3f} s is"
            )
        return found


def measure(folder: Path, seconds: float, seed: int) -> Agreement:
    """Record a daemon below `folder` for so long, and simulate what was recorded."""
    models = folder / "models"
    for number, name in enumerate(MODELS):
        model.make(models / name, "tiny", seed=number)
    with daemon(folder, models=models, policies=_policies(1000)) as running:
        typical = asyncio.run(_calibrated(running))
        rate = SLOTS / typical
        requests = max(3, round(0.28 * rate * RATE_WINDOW))
        running.edit("limits", _policies(requests)["limits"])
        running.edit("server", "traffic: {record: true}\n")
        time.sleep(RATE_WINDOW)  # what was asked so far counts no more, and the edit is in force
        asyncio.run(_played(running, _asks(seconds, rate, seed)))
        policies = running.policies
    return compare(folder / "state" / FOLDER, policies)


def compare(traffic: Path, policies: Path) -> Agreement:
    """A log, and the policies that it was recorded under."""
    log = read([traffic])
    was = measured(log.requests)
    now = World(log, load(policies)).run().outcomes
    before, after = figures_of(was), figures_of(now)
    return Agreement(
        requests=len(was),
        rate_refusals=_count(was, ("rate_limited",)),
        rate_refusals_simulated=_count(now, ("rate_limited",)),
        rate_mismatches=sum(
            (one.code == "rate_limited") != (other.code == "rate_limited")
            for one, other in zip(was, now, strict=True)
        ),
        busy=_count(was, BUSY),
        busy_simulated=_count(now, BUSY),
        wait_p50=before.wait_p50 or 0.0,
        wait_p50_simulated=after.wait_p50 or 0.0,
        wait_p99=before.wait_p99 or 0.0,
        wait_p99_simulated=after.wait_p99 or 0.0,
        ttft_p50=before.ttft_p50 or 0.0,
        ttft_p50_simulated=after.ttft_p50 or 0.0,
    )


def _count(outcomes: Sequence[Outcome], codes: Sequence[str]) -> int:
    return sum(one.code in codes for one in outcomes)


def _policies(requests: int) -> dict[str, str]:
    return {
        "limits": f"concurrency: {{max_in_flight: {SLOTS}, max_waiting: {PLACES}}}\n"
        f"rate_limit: [{{requests: {requests}, window: {RATE_WINDOW:g}s}}]\n",
        "timeouts": "queue: 4s\n",
        "memory": "reserve: {system: 64MiB}\n",
    }


def _asks(seconds: float, rate: float, seed: int) -> list[Ask]:
    """In bursts at twice what the slots can do, with quiet times at half of it between them."""
    rng = random.Random(seed)
    asks: list[Ask] = []
    now = 0.0
    while now < seconds:
        bursting = now % _BURST < _BURST / 2
        now += rng.expovariate(rate * (2.0 if bursting else 0.5))
        client = rng.choices(CLIENTS, [one.share for one in CLIENTS])[0]
        patience = rng.uniform(0.2, 2.0) if rng.random() < _LEAVES else None
        asks.append(Ask(now, client, rng.choice(MODELS), rng.randrange(60, 400), patience))
    return asks


async def _played(running: Daemon, asks: Sequence[Ask]) -> None:
    """Each when it is due, whatever became of those before."""
    async with AsyncExitStack() as stack:
        sessions = {
            client: await stack.enter_async_context(_session(client.address)) for client in CLIENTS
        }
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for ask in asks:
                await asyncio.sleep(max(0.0, began + ask.at - time.monotonic()))
                group.create_task(_asked(sessions[ask.client], running, ask))


def _session(address: str) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(local_addr=(address, 0), limit=0)
    return aiohttp.ClientSession(connector=connector)


async def _asked(session: aiohttp.ClientSession, running: Daemon, ask: Ask) -> float:
    """Seconds that it took; whatever came of it is in the daemon's log."""
    body = {
        "model": ask.model,
        "prompt": "tell me " * 20,
        "raw": True,
        "priority": ask.client.priority,
        "options": {"num_predict": ask.tokens},
    }
    began = time.monotonic()
    try:
        async with asyncio.timeout(ask.patience):
            async with session.post(f"{running.url}/api/generate", json=body) as answer:
                await answer.read()
    except TimeoutError:
        pass
    return time.monotonic() - began


async def _calibrated(running: Daemon) -> float:
    """Seconds of a typical answer while all slots are taken; both models are in memory then."""
    async with _session(CLIENTS[0].address) as session:
        for name in MODELS:
            await _asked(session, running, Ask(0.0, CLIENTS[0], name, 1, None))
        took: list[float] = []
        for _ in range(3):
            asks = [Ask(0.0, CLIENTS[0], MODELS[n % 2], 200, None) for n in range(SLOTS)]
            took += await asyncio.gather(*(_asked(session, running, ask) for ask in asks))
    return sorted(took)[len(took) // 2]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="where the log and the policies are left")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mlxd-simulation-"))
    try:
        agreement = measure(folder, arguments.minutes * 60, arguments.seed)
        if arguments.keep is not None:
            shutil.copytree(folder / "state" / FOLDER, arguments.keep / FOLDER)
            shutil.copytree(folder / "policies", arguments.keep / "policies")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    _show(agreement, as_json=arguments.json)
    return 1 if agreement.problems() else 0


def _show(agreement: Agreement, *, as_json: bool) -> None:
    found: dict[str, Any] = asdict(agreement)
    if as_json:
        print(json.dumps(found | {"problems": agreement.problems()}))
        return
    for name, value in found.items():
        print(f"{name:26} {value:.4g}" if isinstance(value, float) else f"{name:26} {value}")
    print("\n".join(agreement.problems()) or "it agrees")


if __name__ == "__main__":
    sys.exit(main())
