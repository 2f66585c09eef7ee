"""What a loading model does to four running streams of another: their gaps, without and with it.

python benchmarks/load_beside.py [--loads N]

Both are worker processes as the daemon starts them. A round is a few seconds undisturbed, then one
load of a model of 0.6 GB. On a machine with other work only the ratios mean something.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measure import quantile
from benchmarks.model import make
from tests.support.model_maker import Shape, make_model
from tests.support.worker_process import WorkerProcess

STREAMS = 4
CONTEXT = 1 << 16
UNDISTURBED_SECONDS = 2.5
LOADED = Shape(hidden=1024, heads=16, kv_heads=4, intermediate=4096, layers=12)


class Streams:
    """Four endless answers, and when each step of theirs was heard."""

    def __init__(self, folder: Path) -> None:
        self._worker = WorkerProcess(folder, context=CONTEXT)
        ids = [
            self._worker.generate(text=f"stream {n}", max_tokens=CONTEXT) for n in range(STREAMS)
        ]
        self._worker.until(lambda: all(self._worker.told[id].pieces for id in ids))
        self._heard: list[float] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def gaps(self, begin: float, end: float) -> list[float]:
        """Seconds between two steps, both in that time."""
        heard = [at for at in self._heard if begin <= at <= end]
        return [later - earlier for earlier, later in pairwise(heard)]

    def close(self) -> None:
        self._worker.process.kill()
        self._worker.process.wait()

    def _listen(self) -> None:
        try:
            while True:
                before = self._worker.outputs
                self._worker.receive()
                if self._worker.outputs > before:
                    self._heard.append(time.monotonic())
        except (EOFError, OSError):
            return


def measure(loads: int, scratch: Path) -> tuple[list[float], list[float], list[float]]:
    """Gaps undisturbed, gaps beside a load, and how long the loads took; in seconds."""
    running, loaded = make(scratch / "running", "slow"), make_model(scratch / "loaded", LOADED)
    streams = Streams(running)
    alone: list[float] = []
    beside: list[float] = []
    took: list[float] = []
    for _ in range(loads):
        begin = time.monotonic()
        time.sleep(UNDISTURBED_SECONDS)
        start = time.monotonic()
        other = WorkerProcess(loaded)
        end = time.monotonic()
        alone += streams.gaps(begin, start)
        beside += streams.gaps(start, end)
        took.append(end - start)
        other.close()
    streams.close()
    return alone, beside, took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loads", type=int, default=6)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        alone, beside, took = measure(options.loads, Path(scratch))
    for name, gaps in (("undisturbed", alone), ("beside a load", beside)):
        p50, p99 = (1000 * quantile(gaps, q) for q in (0.5, 0.99))
        print(f"{name:15} {len(gaps):5} gaps   p50 {p50:6.1f} ms   p99 {p99:6.1f} ms")
    for q in (0.5, 0.99):
        print(f"ratio of p{100 * q:g}   {quantile(beside, q) / quantile(alone, q):.2f}")
    print(f"a load takes {quantile(took, 0.5):.1f} s")


if __name__ == "__main__":
    main()
