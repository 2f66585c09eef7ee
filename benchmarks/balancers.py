"""Three daemons behind HAProxy and nginx: what stops, kills and moves of one cost the clients.

python benchmarks/balancers.py [--rounds 10] [--programs haproxy nginx] [--json]
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import report, table
from benchmarks.throughput import say
from tests.support.balancers import SERVERS, Balancer, absent, haproxy, nginx
from tests.support.callers import Callers, Failure, calling
from tests.support.daemon import Daemon, free_port
from tests.support.fleet import Fleet, fleet, question

Json = dict[str, Any]
PROGRAMS = {"haproxy": haproxy, "nginx": nginx}
SHORT, LONG = question(1, stream=False), question(100, stream=True)
_PATIENCE_SECONDS = 60.0
_COLUMNS = [
    "balancer", "what", "rounds", "whole answers", "streams", "excused", "streams of them",
    "failed",
]  # fmt: skip


@dataclass
class Row:
    """One kind of event behind one balancer."""

    program: str
    event: str
    rounds: int
    answers: int = 0
    """Whole ones, of one token."""
    streams: int = 0
    """Of 100 tokens, that reached their end."""
    excused: int = 0
    """Requests that were under way when a daemon was killed."""
    excused_streams: int = 0
    failures: list[str] = field(default_factory=list)
    """All others without an answer."""


@dataclass
class Bench:
    """Daemons, one balancer before them, and clients at work."""

    daemons: Fleet
    balancer: Balancer
    short: Callers
    long: Callers


Kill = tuple[float, float]
"""When the signal was sent, and when the process was gone."""
Event = Callable[[Bench, int], Kill | None]
"""Does it to one of the daemons."""


def drained(bench: Bench, n: int) -> None:
    """A stop as a service manager has it."""
    daemon = bench.daemons.daemons[n]
    daemon.process.send_signal(signal.SIGTERM)
    status = daemon.process.wait(_PATIENCE_SECONDS)
    assert status == 0, f"it ended with {status}"


def killed(bench: Bench, n: int) -> Kill:
    daemon = bench.daemons.daemons[n]
    began = time.monotonic()
    daemon.process.kill()
    daemon.process.wait(_PATIENCE_SECONDS)
    return began, time.monotonic()


def moved(bench: Bench, n: int) -> None:
    """To another port, while the balancer is told."""
    port = free_port()
    bench.daemons.move(n, port)
    daemon = bench.daemons.daemons[n]
    while daemon.address().port != port:
        time.sleep(0.01)
    daemon.follow()
    if bench.balancer.program == "haproxy":
        bench.balancer.say(f"set server mlxd/{SERVERS[n]} addr 127.0.0.1 port {port}")
    else:
        bench.balancer.point_to([one.port for one in bench.daemons.daemons])


EVENTS: dict[str, tuple[Event, bool]] = {
    "stop": (drained, True),
    "stop, nearly idle": (drained, False),
    "kill -9": (killed, True),
    "move": (moved, True),
}
"""What is done, and whether many ask meanwhile."""


@contextmanager
def bench_of(program: str, daemons: Fleet, folder: Path, *, busy: bool) -> Iterator[Bench]:
    folder.mkdir()
    with ExitStack() as stack:
        ports = [one.port for one in daemons.complete()]
        balancer = stack.enter_context(PROGRAMS[program](folder, ports))
        each, pause = (6, 0.02) if busy else (3, 0.2)
        short = stack.enter_context(calling([balancer.port], SHORT, each=each, pause=pause))
        long = stack.enter_context(calling([balancer.port], LONG, each=6 if busy else 0))
        yield Bench(daemons, balancer, short, long)


def strike(event: str, program: str, daemons: Fleet, folder: Path, rounds: int) -> Row:
    act, busy = EVENTS[event]
    row = Row(program, event, rounds)
    kills: list[Kill] = []
    with bench_of(program, daemons, folder, busy=busy) as bench:
        for number in range(rounds):
            n = number % len(SERVERS)
            _until_asked(daemons.complete()[n])
            kill = act(bench, n)
            kills += [kill] if kill is not None else []
            _go_on(bench.short)
    row.answers, row.streams = bench.short.answers, bench.long.answers
    for callers, is_stream in ((bench.short, False), (bench.long, True)):
        for failure in callers.failures:
            _judge(failure, kills, row, is_stream=is_stream)
    say(f"{program}, {event}: {row.answers} and {row.streams}, {len(row.failures)} failed")
    return row


def _judge(failure: Failure, kills: list[Kill], row: Row, *, is_stream: bool) -> None:
    if any(failure.began <= gone and failure.ended >= sent for sent, gone in kills):
        row.excused += 1
        row.excused_streams += is_stream
    else:
        row.failures.append(failure.why)


def _until_asked(daemon: Daemon) -> None:
    """Until the balancer sends it requests again."""
    before = _served(daemon)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while _served(daemon) < before + 3:
        assert time.monotonic() < deadline, "it gets no requests"
        time.sleep(0.05)


def _served(daemon: Daemon) -> int:
    found: int = daemon.http.get("/queue/stats").json()["stats"]["total_processed"]
    return found


def _go_on(callers: Callers) -> None:
    """For some more answers."""
    wanted = callers.answers + 30
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while callers.answers < wanted and time.monotonic() < deadline:
        time.sleep(0.05)


def _problems(rows: list[Row]) -> list[str]:
    return [
        f"{row.program}, {row.event}: {len(row.failures)} failed, such as {row.failures[0]}"
        for row in rows
        if row.failures
    ]


def _page(found: Json) -> str:
    cells = [
        [*(str(row[name]) for name in (
            "program", "event", "rounds", "answers", "streams", "excused", "excused_streams",
        )), str(len(row["failures"]))]
        for row in found["rows"]
    ]  # fmt: skip
    legend = (
        "Excused: under way on a daemon when that was killed. Failed: all others without an answer."
    )
    return report.page(
        "A balancer before three daemons", found, table.grid(_COLUMNS, cells), [legend]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--programs", choices=PROGRAMS, nargs="+", default=list(PROGRAMS))
    parser.add_argument("--events", choices=EVENTS, nargs="+", default=list(EVENTS))
    report.add_options(parser)
    options = parser.parse_args()
    if reason := absent("openssl", *options.programs):
        print(reason, file=sys.stderr)
        return report.LEFT_OUT
    begun = report.begun()
    rounds = 1 if options.short else options.rounds
    rows = []
    with tempfile.TemporaryDirectory() as scratch, fleet(Path(scratch), len(SERVERS)) as daemons:
        for program in options.programs:
            for number, event in enumerate(options.events):
                folder = Path(scratch) / f"{program}{number}"
                rows.append(strike(event, program, daemons, folder, rounds))
    found = {**begun, "problems": _problems(rows), "rows": [asdict(row) for row in rows]}
    return report.publish(options, "balancers", found, _page(found))


if __name__ == "__main__":
    sys.exit(main())
