"""Ten thousand wrong requests beside streams: who is disturbed, what grows, and what is said.

python benchmarks/bad_requests.py [--requests 10000] [--streams 8] [--json]
"""

from __future__ import annotations

import argparse
import re
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import report, table
from benchmarks.model import make
from benchmarks.steady import WANTED, WARM_UP, WHO, engines, slope
from benchmarks.strange import Strange, Strangers
from benchmarks.streams import Ask, Stream, Streams, draw_asks, run
from benchmarks.throughput import say
from tests.support.daemon import Daemon, daemon

Json = dict[str, Any]
MODEL = "good"
CLIENTS = 4
LOOKS = 50
ASKS = 8
_ROW = 5
"""Looks that count as one."""
TOKENS = (60, 300)
_LIMITS = "concurrency: {max_in_flight: 64}\nrate_limit: []\ntokens: {max_output: 400}\n"
_SECONDS = 60.0
"""For one answer, whole."""
_LEAKS = re.compile(rb'Traceback|File "|\.py\b|object at 0x|site-packages|pydantic|msgspec\.')
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")
_HONEST = 503


@dataclass(frozen=True, slots=True)
class Said:
    """What came of one; status 0: nothing did."""

    strange: Strange
    status: int
    flaw: str


def ask(port: int, strange: Strange) -> Said:
    """Send it as it is, and hear it out."""
    try:
        answer = _exchange(port, strange)
    except TimeoutError:
        return Said(strange, 0, f"no end within {_SECONDS:g} s")
    except OSError:  # who refuses a long body may hang up on it
        return Said(strange, 0, "")
    match = _STATUS.match(answer)
    status = int(match[1]) if match else 0
    return Said(strange, status, _flaw(strange, status, answer))


def _exchange(port: int, strange: Strange) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=_SECONDS) as connection:
        connection.sendall(strange.raw)
        if strange.end == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return b""
        if strange.end == "fin":
            connection.shutdown(socket.SHUT_WR)
        until, pieces = time.monotonic() + _SECONDS, []
        while piece := connection.recv(65536):
            pieces.append(piece)
            if time.monotonic() > until:
                raise TimeoutError
    return b"".join(pieces)


def _flaw(strange: Strange, status: int, answer: bytes) -> str:
    """What is wrong with an answer; empty where nothing is."""
    if leak := _LEAKS.search(answer):
        return f"an answer that says {leak[0].decode()!r}"
    head = answer.partition(b"\r\n\r\n")[0].lower()
    if status == _HONEST and b"x-mlxd-code:" in head and b"retry-after:" in head:
        return ""
    if status >= 500:
        return f"status {status}: {answer[:200]!r}"
    if not status and strange.end == "whole":
        return f"no answer, but {answer[:60]!r}"
    return ""


def measure(options: argparse.Namespace, scratch: Path) -> Json:
    make(scratch / "models" / MODEL, "tiny-long")
    asks = draw_asks(MODEL, ASKS, TOKENS, options.seed)
    limits = {"limits": _LIMITS, "memory": "prefix_cache: {memory: 8MiB}\n"}
    with daemon(scratch, models=scratch / "models", policies=limits) as running:
        alone = {one: run(running.port, Stream(one, time.monotonic())).text for one in asks}
        before = {process.pid for process in engines(running.pid)}
        with Streams(running.port, [asks], options.streams, options.seed) as streams:
            looks, said = _disturb(options, running)
        same_engine = {process.pid for process in engines(running.pid)} == before
        log = running.log_text()
    return {
        "judged": not options.short,
        "requests": len(said),
        "streams": len(streams.done),
        "looks": looks,
        "statuses": _statuses(said),
        "flaws": sorted({f"{one.strange.kind}: {one.flaw}" for one in said if one.flaw}),
        "disturbed": [*_disturbed(streams.done, alone)],
        "same_engine": same_engine,
        "log_traces": log.count("Traceback"),
    } | {f"{who}_slope": slope(_floors(looks), who) for who in WHO}


def _disturb(options: argparse.Namespace, running: Daemon) -> tuple[list[Json], list[Said]]:
    looks_wanted = 10 if options.short else LOOKS
    each = max(1, options.requests // looks_wanted // CLIENTS)
    strangers = [Strangers(MODEL, options.seed * CLIENTS + n) for n in range(CLIENTS)]
    looks: list[Json] = []
    said: list[Said] = []
    with ThreadPoolExecutor(CLIENTS) as pool:
        while len(said) < options.requests:
            for found in pool.map(lambda one: _some(running.port, one, each), strangers):
                said += found
            looks.append(_look(running.pid, len(said)))
            say(
                f"{len(said)} requests, {sum(bool(one.flaw) for one in said)} answered wrongly, "
                + ", ".join(f"{who} {looks[-1][who]:.1f} MB" for who in WHO)
            )
    return looks, said


def _some(port: int, strangers: Strangers, count: int) -> list[Said]:
    return [ask(port, strangers.draw()) for _ in range(count)]


def _look(pid: int, requests: int) -> Json:
    """MB of each process. Streams run meanwhile: one look alone says little."""
    workers = [process.memory_info().rss for process in engines(pid)]
    daemon_bytes = psutil.Process(pid).memory_info().rss
    return {"requests": requests, "daemon": daemon_bytes / 1e6, "worker": max(workers) / 1e6}


def _floors(looks: Sequence[Json]) -> list[Json]:
    """The least of some looks in a row: bodies of megabytes are under way at others."""
    groups = [looks[at : at + _ROW] for at in range(0, len(looks), _ROW)]
    return [
        {"requests": group[-1]["requests"], **{who: min(one[who] for one in group) for who in WHO}}
        for group in groups
    ]


def _statuses(said: Sequence[Said]) -> dict[str, dict[str, int]]:
    """How often each came, by kind; 0: the connection ended without any."""
    kinds = sorted({one.strange.kind for one in said})
    return {
        kind: dict(
            sorted(Counter(str(one.status) for one in said if one.strange.kind == kind).items())
        )
        for kind in kinds
    }


def _disturbed(streams: Sequence[Stream], alone: dict[Ask, str]) -> Iterator[str]:
    for stream in streams:
        if stream.kind != "finished":
            yield f"a stream ended as {stream.kind}: {stream.code} {stream.error[:100]}"
        elif stream.text != alone[stream.ask]:
            yield f"a stream of {stream.ask.path} said something else than alone"


def problems(found: Json) -> list[str]:
    wrong = [*found["flaws"], *found["disturbed"]]
    if not found["streams"]:
        wrong.append("no stream ended meanwhile")
    if not found["same_engine"]:
        wrong.append("the engine's process is another one")
    if found["log_traces"]:
        wrong.append(f"the log has {found['log_traces']} stack traces")
    if found["judged"]:
        wrong += [
            f"the {who} grows by {found[f'{who}_slope']:.2f} MB for 1,000 requests, and less than"
            f" {WANTED:g} was wanted"
            for who in WHO
            if found[f"{who}_slope"] >= WANTED
        ]
    return wrong


def page(found: Json) -> str:
    whole = [
        f"{found['requests']} wrong requests from {CLIENTS} clients beside {found['streams']}"
        f" streams: {len(found['flaws'])} kinds of wrong answers, {len(found['disturbed'])} streams"
        f" that said something else than alone, {found['log_traces']} stack traces in the log.",
        "",
        f"For 1,000 requests, behind the first {WARM_UP:.0%}, by the least of {_ROW} looks: "
        + ", ".join(f"{who} {found[f'{who}_slope']:.3f} MB" for who in WHO)
        + f"; below {WANTED:g} was wanted.",
    ]
    statuses = sorted({status for counts in found["statuses"].values() for status in counts})
    rows = [
        [kind, *(str(counts.get(status, "")) for status in statuses)]
        for kind, counts in found["statuses"].items()
    ]
    shown = ["none" if status == "0" else status for status in statuses]
    return report.page("Wrong requests", found, whole, table.grid(["kind", *shown], rows))


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    return report.conduct(options, "bad-requests", measure, problems, page)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    report.add_options(parser)
    options = parser.parse_args(argv)
    if options.short:
        options.requests, options.streams = min(options.requests, 500), min(options.streams, 4)
    return options


if __name__ == "__main__":
    raise SystemExit(main())
