"""How true `mlxd policy simulate` is: a real daemon under bursts of traffic is recorded, and then
simulated under the policies that it ran with.

python benchmarks/simulation.py [--minutes 10] [--seed 1] [--keep FOLDER] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import model, report, table
from benchmarks.report import milliseconds as ms
from mlxd.daemon.traffic import FOLDER
from mlxd.policy.load import load
from mlxd.simulate.traffic.outcome import Outcome, measured
from mlxd.simulate.traffic.reading import read
from mlxd.simulate.traffic.report import FIGURES, figures_of
from mlxd.simulate.traffic.world import World
from tests.support.daemon import Daemon, daemon

Json = dict[str, Any]
MODELS = ("left", "right")
SLOTS, PLACES = 3, 12
RATE_WINDOW = 10.0
RATE = "rate_limited"
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


def measure(folder: Path, seconds: float, seed: int) -> Json:
    """Record a daemon below `folder` for so long, and simulate what was recorded."""
    models = folder / "models"
    for number, name in enumerate(MODELS):
        model.make(models / name, "tiny", seed=number)
    with daemon(folder, models=models, policies=_policies(1000)) as running:
        typical = asyncio.run(_calibrated(running))
        rate = SLOTS / typical
        requests = max(4, round(0.5 * rate * RATE_WINDOW))
        running.edit("limits", _policies(requests)["limits"])
        running.edit("server", "traffic: {record: true}\n")
        time.sleep(RATE_WINDOW)  # what was asked so far counts no more, and the edit is in force
        asyncio.run(_played(running, _asks(seconds, rate, seed)))
    found = compare(folder / "state" / FOLDER, folder / "policies")
    return found | {"seed": seed, "seconds": seconds, "slots": SLOTS, "quota": requests}


def compare(traffic: Path, policies: Path) -> Json:
    """A log, and the policies that it was recorded under."""
    log = read([traffic])
    was = measured(log.requests)
    now = World(log, load(policies)).run().outcomes
    return {
        "requests": len(was),
        "rate_mismatches": sum(
            (one.code == RATE) != (other.code == RATE) for one, other in zip(was, now, strict=True)
        ),
        "was": _figures(was),
        "simulated": _figures(now),
    }


def _figures(outcomes: Sequence[Outcome]) -> Json:
    found = figures_of(outcomes)
    return {
        "served": found.served,
        "rate": found.codes[RATE],
        "busy": sum(found.codes[code] for code in BUSY),
        **{name: getattr(found, name) or 0.0 for name in FIGURES},
    }


def problems(found: Json) -> list[str]:
    """Where they are further apart than is wanted."""
    was, now = found["was"], found["simulated"]
    wrong = []
    if found["rate_mismatches"]:
        wrong.append(f"{found['rate_mismatches']} rate refusals are other requests'")
    if abs(was["busy"] - now["busy"]) > MOST_BUSY_OFF * found["requests"]:
        wrong.append(f"503: {was['busy']} were, {now['busy']} are simulated")
    off = abs(was["wait_p50"] - now["wait_p50"])
    if off > max(_LEAST_WAIT_OFF, MOST_WAIT_OFF * was["wait_p50"]):
        wrong.append(f"median wait: {was['wait_p50']:.3f} s was, {now['wait_p50']:.3f} s is")
    return wrong


def _policies(requests: int) -> dict[str, str]:
    return {
        "limits": f"concurrency: {{max_in_flight: {SLOTS}, max_waiting: {PLACES}}}\n"
        f"rate_limit: [{{requests: {requests}, window: {RATE_WINDOW:g}s}}]\n",
        "timeouts": "queue: 4s\n",
        "memory": "reserve: {system: 64MiB}\n",
    }


def _asks(seconds: float, rate: float, seed: int) -> list[Ask]:
    """In bursts at three times what the slots can do, and quieter between them."""
    rng = random.Random(seed)
    asks: list[Ask] = []
    now = 0.0
    while now < seconds:
        bursting = now % _BURST < _BURST / 2
        now += rng.expovariate(rate * (3.0 if bursting else 0.7))
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


def page(found: Json) -> str:
    was, now = found["was"], found["simulated"]
    rows = [
        ["refused by rate (429)", str(was["rate"]), str(now["rate"]), "the same requests"],
        ["refused as busy (503)", str(was["busy"]), str(now["busy"]), "1 % of the requests"],
        ["served", str(was["served"]), str(now["served"]), ""],
        *(
            [name.replace("_", " ") + ", ms", ms(was[name]), ms(now[name]),
             "20 %" if name == "wait_p50" else ""]
            for name in FIGURES
        ),
    ]  # fmt: skip
    words = [
        f"{found['requests']} requests in {found['seconds'] / 60:.1f} minutes, seed"
        f" {found['seed']}: bursts at three times what {found['slots']} slots can do, and quieter",
        f"times between them; {len(CLIENTS)} clients of three classes, {len(MODELS)} models,",
        f"a queue of {PLACES}, {found['quota']} requests in {RATE_WINDOW:g} s for each client.",
    ]
    grid = table.grid(["what", "was", "simulated", "may differ by"], rows)
    return report.page("Simulation", found, words, grid)


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    found = report.begun()
    with tempfile.TemporaryDirectory(prefix="mlxd-bench-") as scratch:
        folder = Path(scratch)
        found |= measure(folder, options.minutes * 60, options.seed)
        if options.keep is not None:
            shutil.copytree(folder / "state" / FOLDER, options.keep / FOLDER)
            shutil.copytree(folder / "policies", options.keep / "policies")
    found["problems"] = problems(found)
    return report.publish(options, "simulation", found, page(found))


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="where the log and the policies are left")
    report.add_options(parser)
    options = parser.parse_args(argv)
    if options.short:
        options.minutes = 0.35
    return options


if __name__ == "__main__":
    raise SystemExit(main())
