"""Raw BatchGenerator, mlxd and its peers on the same prompts, round by round.

    python benchmarks/throughput.py [--short] [--shape slow] [--peers DIR [--install-peers]]

README.md beside this file says how to read the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import plot, table
from benchmarks.client import APIS, BadAnswer
from benchmarks.measure import Rounds, ask_raw, ask_server
from benchmarks.model import PROMPT_TOKENS, SHAPES, make_prompts, parameters
from benchmarks.servers import (
    HERE,
    PEERS,
    Daemon,
    NotThere,
    Raw,
    Server,
    install_peers,
    start_peer,
)

MODES = {"whole": False, "streamed": True}
IDLE_SECONDS = 2.0


class Bench:
    """The processes that are compared, and what was measured of them."""

    def __init__(self, options: argparse.Namespace, scratch: Path, stack: ExitStack) -> None:
        self.options = options
        self.folder = make_model(options.shape, scratch)
        self.rounds = Rounds()
        self.left_out: list[str] = []
        self.idle: dict[str, float] = {}
        self.raw = Raw(self.folder, scratch)
        stack.callback(self.raw.watched.stop)
        self.servers: list[Server] = []
        for name in options.only:
            try:
                server = self._start(name, scratch)
            except NotThere as reason:
                self._leave_out(str(reason))
                continue
            stack.callback(server.watched.stop)
            self.servers.append(server)

    def _start(self, name: str, scratch: Path) -> Server:
        if name == Daemon.name:
            daemon = Daemon(self.folder, scratch)
            daemon.until_ready()
            return daemon
        if self.options.api != "openai":
            raise NotThere(f"{name}: speaks only the OpenAI API")
        return start_peer(name, self.options.peers, self.folder, scratch)

    def _leave_out(self, reason: str) -> None:
        self.left_out.append(" ".join(reason.split())[:300])
        say(f"left out: {reason}")

    def run(self) -> None:
        """One round that does not count, then those that do."""
        for number in range(self.options.rounds + 1):
            for streams in self.options.streams:
                began = time.monotonic()
                self._round(number, streams)
                name = f"round {number}/{self.options.rounds}" if number else "warm-up"
                say(f"{name}, {streams} streams: {time.monotonic() - began:.1f} s")
            if not number:
                self._watch_idle()

    def _watch_idle(self) -> None:
        """What each takes of a core while it waits for its turn: it disturbs the others by that."""
        before = [server.watched.cpu_seconds() for server in self.servers]
        time.sleep(IDLE_SECONDS)
        for server, used in zip(self.servers, before, strict=True):
            share = (server.watched.cpu_seconds() - used) / IDLE_SECONDS
            self.idle[server.name] = round(share * 100.0, 2)

    def _round(self, number: int, streams: int) -> None:
        """Raw, then everybody: no prompt comes twice to the same process."""
        tokens = self.options.tokens
        raw = ask_raw(self.raw, self._prompts(number, streams, "raw"), tokens)
        if number:
            self.rounds.add("raw", "raw", streams, raw, raw)
        for server in list(self.servers):
            for mode, stream in MODES.items():
                prompts = self._prompts(number, streams, mode)
                try:
                    load = ask_server(server, prompts, tokens, stream=stream, api=self.options.api)
                except (BadAnswer, OSError) as error:
                    if isinstance(server, Daemon):
                        raise
                    self.servers.remove(server)
                    self._leave_out(f"{server.name}: {error}")
                    break
                if number:
                    self.rounds.add(server.name, mode, streams, load, raw)

    def _prompts(self, number: int, streams: int, mode: str) -> list[str]:
        return make_prompts(self.folder, streams, f"{number}/{streams}/{mode}")

    def report(self, load_average: str) -> dict[str, Any]:
        return {
            "date": table.today(),
            "machine": table.machine(),
            "versions": {server.name: server.version() for server in self.servers},
            "idle_core_percent": self.idle,
            "left_out": self.left_out,
            "shape": self.options.shape,
            "parameters": parameters(self.folder),
            "prompt_tokens": PROMPT_TOKENS,
            "tokens": self.options.tokens,
            "rounds": self.options.rounds,
            "api": self.options.api,
            "load_average": load_average,
            "rows": self.rounds.rows(),
            "loads": self.rounds.loads(),
        }


def make_model(shape: str, scratch: Path) -> Path:
    """In a process of its own: this one stays free of mlx."""
    folder = scratch / "models" / shape
    command = [sys.executable, str(HERE / "model.py"), str(folder), "--shape", shape]
    subprocess.run(command, check=True)
    return folder


def make_sized(shape: str, scratch: Path, sizes: Mapping[str, int]) -> None:
    """The same for several models, whose sizes are by name; no two have the same weights."""
    folders = [str(scratch / "models" / name) for name in sizes]
    command = [sys.executable, str(HERE / "model.py"), *folders, "--shape", shape]
    subprocess.run([*command, "--size", *map(str, sizes.values())], check=True)


@contextmanager
def benched(options: argparse.Namespace) -> Iterator[Bench]:
    """Everything started; all of it is ended and removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="mlxd-bench-") as scratch, ExitStack() as stack:
        yield Bench(options, Path(scratch), stack)


def write(report: dict[str, Any], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    suffix = "" if report["api"] == "openai" else f"-{report['api']}"
    base = out / f"throughput-{report['shape']}{suffix}"
    base.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    base.with_suffix(".md").write_text(table.markdown(report))
    base.with_suffix(".svg").write_text(plot.svg(report))
    say(f"written: {base}.md, .json, .svg")


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # or the servers would stay behind
    if options.install_peers:
        install_peers(options.peers.absolute())
    load_average = " ".join(f"{load:.2f}" for load in os.getloadavg())
    with benched(options) as bench:
        bench.run()
        report = bench.report(load_average)
    write(report, options.out)
    print(table.markdown(report))
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    contestants = [Daemon.name, *PEERS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--tokens", type=int, default=256, help="new tokens of each answer")
    parser.add_argument("--only", nargs="+", choices=contestants, default=contestants)
    parser.add_argument("--api", choices=APIS, default="openai")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--peers", type=Path, help="folder of the peers' environments")
    parser.add_argument("--install-peers", action="store_true", help="make them there first")
    parser.add_argument("--short", action="store_true", help="few rounds; mlxd alone")
    options = parser.parse_args(argv)
    if options.install_peers and options.peers is None:
        parser.error("--install-peers needs --peers")
    if options.short:
        options.rounds, options.streams, options.only = 2, [1, 8], [Daemon.name]
    return options


if __name__ == "__main__":
    raise SystemExit(main())
