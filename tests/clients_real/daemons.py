"""The daemons that the clients meet: one without limits, and one for each way to be refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.support.daemon import Daemon, daemon
from tests.support.model_maker import THINKING, TOOL_TEMPLATE, TOOLS, Shape, make_model

_UNLIMITED = "concurrency: {max_in_flight: 64}\nrate_limit: []\n"
_ONE_SLOT = "concurrency: {max_in_flight: 1}\nrate_limit: []\n"
_NO_REPLAY = (
    "worker:\n"
    "  backoff: {base: 100ms, max: 200ms}\n"
    "  budget: [{max: 1000, per: 300s}]\n"
    "  breaker: {failures: 1000}\n"
    "replay: {when: off}\n"
    "quarantine: {kills: 1000}\n"
)


def _rated(window: str) -> str:
    rate = f"{{name: tight, key: client_ip, requests: 1, window: {window}}}"
    return f"concurrency: {{max_in_flight: 64}}\nrate_limit: [{rate}]\n"


POLICIES: Mapping[str, Mapping[str, str]] = {
    "main": {"limits": _UNLIMITED},
    # Always 429: the one request of the window is spent before anybody asks.
    "spent": {"limits": _rated("1h")},
    # 429 that a client waits out by itself.
    "brief": {"limits": _rated("2s")},
    # 503 while somebody holds the slot, 413 for a long body, and what a dead worker leaves.
    "single": {
        "limits": _ONE_SLOT,
        "server": "http: {max_body: 64KiB}\n",
        "supervision": _NO_REPLAY,
    },
    # 504 before the first byte of a whole answer, and in the middle of a stream.
    "hasty": {"limits": _UNLIMITED, "timeouts": "generation: 400ms\n"},
}


def make_models(folder: Path) -> Path:
    """Random models: two plain ones, one that never ends, others for thoughts and tools."""
    plain = Shape(spread=3.0)
    make_model(folder / "tiny-a", plain, seed=1)
    make_model(folder / "tiny-b", plain, seed=2)
    make_model(folder / "endless", Shape(context=32768), seed=3)
    kinds = {"thinker": THINKING, "toolbox": TOOLS, "agent": THINKING + TOOLS}
    for seed, (name, markers) in enumerate(kinds.items(), 4):
        marked = Shape(spread=3.0, markers=markers, template=TOOL_TEMPLATE)
        make_model(folder / name, marked, seed=seed)
    return folder


@contextmanager
def running(folder: Path) -> Iterator[dict[str, Daemon]]:
    """All of them, by name."""
    models = make_models(folder / "models")
    with ExitStack() as stack:
        started: dict[str, Daemon] = {}
        for name, policies in POLICIES.items():
            (folder / name).mkdir()
            started[name] = stack.enter_context(
                daemon(folder / name, models=models, policies=policies)
            )
        _spend(started["spent"])
        yield started


def _spend(spent: Daemon) -> None:
    body = {"model": "tiny-a", "prompt": "x", "options": {"num_predict": 1}, "stream": False}
    spent.http.post("/api/generate", json=body).raise_for_status()
