"""Models that do not fit together, with real engines: who waits, who leaves, what is said."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.conftest import NO_LIMITS
from tests.integration.talking import (
    AT_ONCE,
    ENDLESS,
    Json,
    cached,
    eventually,
    generate,
    held,
    idle,
    say,
    spawned,
    workers_of,
)
from tests.support.daemon import Daemon

pytestmark = pytest.mark.mlx

WAITS = "eviction: {protect_recent: 0s, min_residency: 0s}\n"
ONE = "max_loaded: 1\n"


def post(daemon: Daemon, model: str, tokens: int = 2) -> httpx.Response:
    body: Json = generate(model, "x", tokens=tokens) | {"stream": False}
    return daemon.http.post("/api/generate", json=body)


def loading(daemon: Daemon, model: str) -> bool:
    return model in daemon.health()["loading_models"]


@pytest.mark.timeout(300)
@pytest.mark.slow
def test_two_models_that_do_not_fit_together_alternate(start: Any, zoo: Path) -> None:
    daemon: Daemon = start({"models": f"dirs: [{zoo}]\n{ONE}", "memory": WAITS})
    models = ("tiny-a", "tiny-b")
    for model in islice(cycle(models), 10):
        assert post(daemon, model).status_code == 200
        assert set(workers_of(daemon)) == {model}
    with ThreadPoolExecutor(2) as pool:
        clients = pool.map(lambda m: [post(daemon, m).status_code for _ in range(5)], models)
        assert list(clients) == [[200] * 5] * 2
    assert len(daemon.workers()) == 1
    assert "not seen to be free" not in daemon.log_text()


@pytest.mark.slow
def test_a_load_waits_until_what_is_in_its_way_is_given_back(start: Any, zoo: Path) -> None:
    daemon: Daemon = start({"models": f"dirs: [{zoo}]\n{ONE}", "memory": WAITS})
    with ThreadPoolExecutor(1) as pool, held(daemon) as stream:
        answer: Future[httpx.Response] = pool.submit(post, daemon, "tiny-b")
        eventually(lambda: loading(daemon, "tiny-b"), "tiny-b waits")
        stream.read(3)
        assert set(workers_of(daemon)) == {ENDLESS}
        assert not answer.done()
        stream.hang_up()
        assert answer.result(60).status_code == 200
    assert set(cached(daemon)) == {"tiny-b"}


@pytest.mark.slow
def test_weights_are_bounded_and_a_model_alone_over_the_bound_is_refused_for_good(
    start: Any, zoo: Path
) -> None:
    size = (zoo / "tiny-a" / "model.safetensors").stat().st_size
    bound = f"max_loaded_bytes: {size * 3 // 2}B\n"
    daemon: Daemon = start({"models": f"dirs: [{zoo}]\n{bound}", "memory": AT_ONCE})
    for model in ("tiny-a", "tiny-b"):
        assert post(daemon, model).status_code == 200
        assert set(workers_of(daemon)) == {model}
    daemon.edit("models", f"dirs: [{zoo}]\nmax_loaded_bytes: 1KiB\n")
    daemon.reload()
    eventually(lambda: not daemon.workers(), "what is over the bound leaves")
    refused = post(daemon, "tiny-a")
    assert refused.status_code == 503
    assert refused.headers["x-mlxd-code"] == "insufficient_memory"
    assert refused.headers["x-mlxd-policy-key"] == "models.max_loaded_bytes"


@pytest.mark.slow
def test_what_memory_does_not_allow_is_refused_with_numbers_and_skipped_as_a_preload(
    start: Any, zoo: Path
) -> None:
    models = f"dirs: [{zoo}]\npreload: [tiny-b]\n"
    daemon: Daemon = start({"models": models, "memory": "reserve: {system: 900TiB}\n"})
    refused = post(daemon, "tiny-a")
    assert refused.status_code == 503
    assert refused.headers["x-mlxd-code"] == "insufficient_memory"
    assert refused.headers["x-mlxd-policy-key"] == "memory.reserve.system"
    assert int(refused.headers["retry-after"]) >= 1
    assert " bytes) of memory and 0 B (0 bytes) are available" in refused.text

    def skipped() -> list[str]:
        return [w for w in daemon.health()["warnings"] if "'tiny-b' is not loaded" in w]

    (warning,) = eventually(skipped, "a warning about the preload")
    assert " bytes) of memory and 0 B (0 bytes) are available" in warning
    daemon.edit("memory", "reserve: {system: 1MiB}\n")
    daemon.reload()
    eventually(lambda: "tiny-b" in cached(daemon) and not skipped(), "it is tried again", 30)
    assert post(daemon, "tiny-a").status_code == 200


@pytest.mark.slow
def test_those_who_wait_for_one_load_leave_a_slot_to_the_models_in_memory(
    start: Any, zoo: Path
) -> None:
    limits = NO_LIMITS.replace("64", "3")
    policies = {"models": f"dirs: [{zoo}]\n{ONE}", "limits": limits, "memory": ""}
    daemon: Daemon = start(policies | {"timeouts": "model_load: 5s\n"})
    say(daemon, "tiny-a", "x", tokens=2)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(post, daemon, "tiny-b") for _ in range(2)]
        eventually(lambda: daemon.health()["active_requests"] == 2, "two requests wait")
        refused = post(daemon, "tiny-b")
        assert refused.status_code == 503
        assert "2 requests wait for model 'tiny-b'" in refused.text
        assert refused.headers["x-mlxd-policy-key"] == "limits.concurrency.max_in_flight"
        assert post(daemon, "tiny-a").status_code == 200
        late = [one.result(30) for one in waiting]
    assert [one.status_code for one in late] == [503, 503]
    for one in late:
        assert one.headers["x-mlxd-policy-key"] == "memory.eviction.protect_recent"
        assert 20 <= int(one.headers["retry-after"]) <= 30
    assert spawned(daemon, "tiny-b") == 0
    idle(daemon)


@pytest.mark.slow
def test_a_worker_is_given_more_when_it_needs_it_and_says_so_when_it_gets_none(
    start: Any, zoo: Path
) -> None:
    """A first generation may take next to nothing, so each long prompt is a need."""
    small = "reserve: {{per_request: 64KiB, when_full: refuse, system: {}}}\n"
    daemon: Daemon = start({"models": f"dirs: [{zoo}]\n", "memory": small.format("1MiB")})
    body: Json = generate(ENDLESS, "word " * 200, tokens=2) | {"stream": False}
    assert daemon.http.post("/api/generate", json=body).status_code == 200
    before = workers_of(daemon)
    daemon.edit("memory", small.format("900TiB"))
    daemon.reload()
    body["prompt"] = "other " * 400
    refused = daemon.http.post("/api/generate", json=body)
    assert refused.status_code in (400, 503), refused.text
    assert refused.headers["x-mlxd-code"] in ("insufficient_memory", "context_exceeded")
    daemon.edit("memory", small.format("1MiB"))
    daemon.reload()
    assert daemon.http.post("/api/generate", json=body).status_code == 200
    assert workers_of(daemon) == before, "neither harmed the worker"
