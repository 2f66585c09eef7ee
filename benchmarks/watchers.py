"""What it costs to be watched: a scrape, the page left open in a browser, `mlxd status --watch`.

python benchmarks/watchers.py [--json]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import report, table
from benchmarks.measure import ask_server
from benchmarks.model import make_prompts
from benchmarks.servers import Daemon, cpu_seconds
from benchmarks.throughput import make_model, say

Json = dict[str, Any]
SHAPE = "slow"
STREAMS = 4
WAYS = ("alone", "asked", "watched")
PAGE_SECONDS = 1.0
SCRAPE_SECONDS = 15.0
"""As etc/prometheus.yml has it."""
SETTLE_SECONDS = 3.0
"""For a browser to draw what it draws once."""
CORE_WANTED = 0.02
"""Of one core, all watchers together."""
GAP_WANTED = 1.05
STEP_WANTED_MS = 20.0
"""Shorter steps have gaps that the benchmark itself disturbs."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


class Watchers:
    """All of them, at one daemon."""

    def __init__(self, daemon: Daemon, scratch: Path, browser: Any) -> None:
        self._daemon = daemon
        self._scratch = scratch
        self._browser = browser
        self.asked: dict[str, int] = {"page": 0, "scrape": 0, "status": 0}
        """What came of each."""

    @contextmanager
    def looking(self) -> Iterator[None]:
        """They look for as long as this lasts."""
        with ExitStack() as stack:
            stack.enter_context(self._page())
            stack.enter_context(self._status())
            stack.enter_context(self._scrapes())
            time.sleep(SETTLE_SECONDS)
            yield

    @contextmanager
    def asking(self) -> Iterator[None]:
        """The same questions, with the browser on another machine."""
        token = json.loads(self._get("/ui/session"))["token"]
        ask = partial(self._ask_as_the_page, token)
        with ExitStack() as stack:
            stack.enter_context(self._again_and_again(PAGE_SECONDS, ask))
            stack.enter_context(self._status())
            stack.enter_context(self._scrapes())
            time.sleep(SETTLE_SECONDS)
            yield

    def _ask_as_the_page(self, token: str) -> None:
        self.asked["page"] += bool(self._get("/ui/state", {"X-Mlxd-Page": token}))

    def _get(self, path: str, headers: Mapping[str, str] | None = None) -> bytes:
        url = f"http://localhost:{self._daemon.port}{path}"
        asked = urllib.request.Request(url, headers=dict(headers or {}))
        with urllib.request.urlopen(asked) as answer:
            said: bytes = answer.read()
        return said

    @contextmanager
    def _page(self) -> Iterator[None]:
        page = self._browser.new_page()
        page.on("response", self._answered)
        page.goto(f"http://localhost:{self._daemon.port}/ui")
        try:
            yield
            page.wait_for_timeout(1)  # it hears of answers while it waits
        finally:
            page.close()

    def _answered(self, response: Any) -> None:
        self.asked["page"] += response.url.endswith("/ui/state")

    @contextmanager
    def _status(self) -> Iterator[None]:
        command = [
            sys.executable, "-m", "mlxd", "status", "--watch",
            "--state", str(self._scratch / "state"),
        ]  # fmt: skip
        told = self._scratch / "status.log"
        with told.open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(10.0)
            self.asked["status"] += told.read_text().count("healthy")

    def _scrapes(self) -> AbstractContextManager[None]:
        return self._again_and_again(SCRAPE_SECONDS, self._scrape)

    def _scrape(self) -> None:
        self.asked["scrape"] += bool(self._get("/metrics"))

    @contextmanager
    def _again_and_again(self, seconds: float, ask: Callable[[], None]) -> Iterator[None]:
        over = threading.Event()

        def go_on() -> None:
            ask()
            while not over.wait(seconds):
                ask()

        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(go_on)
            try:
                yield
            finally:
                over.set()
            asked.result()


def measure(options: argparse.Namespace, scratch: Path) -> Json:
    folder = make_model(SHAPE, scratch)
    with ExitStack() as stack:
        browser = stack.enter_context(launched())
        daemon = Daemon(folder, scratch)
        stack.callback(daemon.watched.stop)
        daemon.until_ready()
        watchers = Watchers(daemon, scratch, browser)
        gaps = list(rounds(options, daemon, folder, watchers))
        idle = cost(options, daemon, watchers)
    return {"judged": not options.short, "rounds": gaps, "asked": watchers.asked} | idle


@contextmanager
def launched() -> Iterator[Any]:
    """A browser without a window."""
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def rounds(
    options: argparse.Namespace, daemon: Daemon, folder: Path, watchers: Watchers
) -> Iterator[Json]:
    """Gaps alone, asked and watched, by turns; the first round does not count."""
    ways = {"alone": contextlib.nullcontext, "asked": watchers.asking, "watched": watchers.looking}
    for number in range(options.rounds + 1):
        gaps: Json = {}
        for who in (*WAYS[number % 3 :], *WAYS[: number % 3]):
            with ways[who]():
                prompts = make_prompts(folder, STREAMS, f"{number} {who}")
                load = ask_server(daemon, prompts, options.tokens, stream=True)
            gaps[who] = {"p50": load.gap_p50_ms, "p99": load.gap_p99_ms}
        say(f"round {number}/{options.rounds}: {gaps}")
        if number:
            yield gaps


def cost(options: argparse.Namespace, daemon: Daemon, watchers: Watchers) -> Json:
    """Shares of a core that the daemon takes while it does nothing else."""
    pid = daemon.watched.process.pid
    alone = share(pid, options.seconds)
    with watchers.looking():
        watched = share(pid, options.seconds)
    say(f"of a core: {alone:.2%} alone, {watched:.2%} watched")
    return {"alone": alone, "watched": watched}


def share(pid: int, seconds: float) -> float:
    before, began = cpu_seconds(pid), time.monotonic()
    time.sleep(seconds)
    return (cpu_seconds(pid) - before) / (time.monotonic() - began)


def ratio(found: Json, who: str = "watched") -> float:
    return median(one[who]["p99"] / one["alone"]["p99"] for one in found["rounds"])


def problems(found: Json) -> list[str]:
    wrong = [f"nothing came of the {who}" for who, count in found["asked"].items() if not count]
    if not found["judged"]:
        return wrong
    if (more := found["watched"] - found["alone"]) >= CORE_WANTED:
        wrong.append(f"watching takes {more:.1%} of a core, and less than {CORE_WANTED:.0%}"
                     " was wanted")  # fmt: skip
    if (slower := ratio(found)) > GAP_WANTED:
        wrong.append(f"the gap's p99 is {slower:.3f} of alone, and {GAP_WANTED:g} was wanted")
    step = median(one["alone"]["p50"] for one in found["rounds"])
    if step < STEP_WANTED_MS:
        wrong.append(f"a step takes {step:.0f} ms, and {STEP_WANTED_MS:g} were wanted")
    return wrong


def page(found: Json) -> str:
    header = ["round", *(f"{part} {who}, ms" for part in ("p50", "p99") for who in WAYS)]
    rows = [
        [
            str(number),
            *(f"{one[who][part]:.1f}" for part in ("p50", "p99") for who in WAYS),
        ]
        for number, one in enumerate(found["rounds"], 1)
    ]
    words = [
        f"A scrape each {SCRAPE_SECONDS:g} s, the page left open in a browser, and"
        f" `mlxd status --watch`. The daemon takes {found['alone']:.2%} of a core idle,"
        f" {found['watched']:.2%} watched; {CORE_WANTED:.0%} more were allowed.",
        "",
        f"Token gaps of {STREAMS} streams, by turns. With all of these on this machine the p99 is"
        f" {ratio(found):.3f} of that alone, {GAP_WANTED:g} was allowed. Where only the browser is"
        f" elsewhere, and its questions come as they do from it, it is {ratio(found, 'asked'):.3f}:"
        " what is above that is what the browser itself takes of the engine's cores.",
    ]
    return report.page("The cost of being watched", found, words, table.grid(header, rows))


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    return report.conduct(options, "watchers", measure, problems, page)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=768, help="of each answer")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each look at the idle one")
    report.add_options(parser)
    options = parser.parse_args(argv)
    if options.short:
        options.rounds, options.tokens, options.seconds = 1, 16, 2.0
    return options


if __name__ == "__main__":
    raise SystemExit(main())
