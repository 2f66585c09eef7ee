"""GET /metrics of a daemon whose hundreds of models have all served."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import cast

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from mlxd.core.caller import Caller
from mlxd.core.clock import ManualClock
from mlxd.core.story import Story
from mlxd.server.health import Scrape
from mlxd.server.parts import Parts
from mlxd.telemetry import metrics as module
from mlxd.telemetry.metrics import Metrics
from mlxd.telemetry.served import Served


async def test_series_by_model_are_written_beside_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    metrics = Metrics()
    metrics.would_deny("hosts")
    served = Served(metrics.served)
    for number in range(50):
        story = Story("r", "/p", Caller("c"), 1, 0.0, ManualClock().monotonic, 0.0)
        story.model, story.leased, story.first_token = f"model-{number}", 1.0, 1.0
        served.ended(story)
    here = threading.get_ident()
    longest = 0
    generate = generate_latest

    def noted(registry: CollectorRegistry) -> bytes:
        nonlocal longest
        text = generate(registry)
        if threading.get_ident() == here:
            longest = max(longest, len(text))
        return text

    monkeypatch.setattr(module, "generate_latest", noted)
    parts = cast("Parts", SimpleNamespace(metrics=metrics))
    answer = await Scrape(parts)(make_mocked_request("GET", "/metrics"))
    assert isinstance(answer, web.Response)
    assert isinstance(answer.body, bytes)
    assert b'mlxd_policy_would_deny_total{rule="hosts"} 1.0' in answer.body
    assert b'mlxd_time_to_first_token_seconds_count{model="model-49"} 1.0' in answer.body
    assert 0 < longest < len(answer.body) / 4


async def test_whoever_asks_and_hangs_up_they_are_written_once_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    metrics, go_on, begun = Metrics(), threading.Event(), asyncio.Event()
    loop, written = asyncio.get_running_loop(), 0

    def render_served() -> bytes:
        nonlocal written
        written += 1
        loop.call_soon_threadsafe(begun.set)
        go_on.wait(20)
        return b"served"

    monkeypatch.setattr(metrics, "render_served", render_served)
    scrape = Scrape(cast("Parts", SimpleNamespace(metrics=metrics)))
    for _ in range(3):
        asked = asyncio.create_task(scrape(make_mocked_request("GET", "/metrics")))
        await begun.wait()
        await asyncio.sleep(0)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
    last = asyncio.create_task(scrape(make_mocked_request("GET", "/metrics")))
    await asyncio.sleep(0)
    go_on.set()
    answer = await last
    assert isinstance(answer, web.Response)
    assert isinstance(answer.body, bytes)
    assert answer.body.startswith(b"served")
    assert written == 1
