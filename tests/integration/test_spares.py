"""Engine processes that are there before anybody wants them: taken, replaced, never left over."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.integration.conftest import NO_LIMITS, Start
from tests.integration.talking import (
    ENDLESS,
    TRIES,
    cached,
    eventually,
    generate,
    gone,
    held,
    say,
    unload,
    workers_of,
)
from tests.support.daemon import Daemon, daemon

pytestmark = pytest.mark.mlx

ONE = (
    "worker: {spares: 1, budget: [{max: 1000, per: 300s}], backoff: {base: 100ms, max: 100ms},"
    " breaker: {failures: 1000}}\n"
)


@pytest.fixture(scope="module")
def sparing(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    policies = {"limits": NO_LIMITS, "supervision": ONE}
    with daemon(tmp_path_factory.mktemp("sparing"), models=zoo, policies=policies) as running:
        yield running


def spare_of(running: Daemon, but: int = 0) -> int:
    """The pid of the one that is ready; another than `but`."""

    def found() -> int:
        return next((pid for pid in running.spares() if pid != but), 0)

    return eventually(found, "a spare is ready")


def replays_of(running: Daemon) -> int:
    return len(running.admin.get("/admin/events", types="replay")["events"])


def unheard_of(running: Daemon) -> int:
    """How many spares have not answered in time, as the log has it."""
    return running.log_text().count("does not answer")


def test_a_load_takes_the_spare_and_another_is_made(sparing: Daemon) -> None:
    spare = spare_of(sparing)
    assert workers_of(sparing) == {}, "it is nobody's worker"
    say(sparing, "tiny-a", "x", tokens=1)
    assert workers_of(sparing) == {"tiny-a": spare}
    assert spare_of(sparing, but=spare) != spare
    told = sparing.admin.get("/admin/events", types="worker_up")["events"]
    assert [event["data"]["spare"] for event in told] == [True]
    (kept,) = sparing.health()["spares"]
    assert kept["state"] == "ready"
    assert kept["bytes"] == pytest.approx(psutil.Process(kept["pid"]).memory_info().rss, rel=0.2)
    metrics = sparing.http.get("/metrics").text
    assert 'mlxd_loads_by_process_total{process="spare"} 1.0' in metrics
    unload(sparing, "tiny-a")


def test_a_stream_goes_on_in_a_spare_with_the_same_tokens(sparing: Daemon) -> None:
    tokens = 400
    undisturbed = say(sparing, ENDLESS, "exact", tokens=tokens, temperature=0.9, seed=7)
    body = generate(ENDLESS, "exact", tokens=tokens, temperature=0.9, seed=7)
    for _ in range(TRIES):
        say(sparing, ENDLESS, "warm", tokens=1)
        first, spare = workers_of(sparing)[ENDLESS], spare_of(sparing)
        replays, unheard = replays_of(sparing), unheard_of(sparing)
        with held(sparing, body=body) as stream:
            stream.read(4)
            os.kill(first, signal.SIGKILL)
            stream.rest()
        assert stream.text == undisturbed
        if replays_of(sparing) > replays and unheard_of(sparing) == unheard:
            assert workers_of(sparing)[ENDLESS] == spare
            return
    raise AssertionError("no replay, or no spare that answered")


@pytest.mark.slow
def test_a_spare_that_hangs_costs_its_request_a_second(sparing: Daemon) -> None:
    spare = spare_of(sparing)
    os.kill(spare, signal.SIGSTOP)
    say(sparing, "tiny-b", "x", tokens=1)
    assert workers_of(sparing)["tiny-b"] != spare
    eventually(lambda: gone(spare), "it is killed")
    assert "does not answer" in sparing.log_text()
    unload(sparing, "tiny-b")


@pytest.mark.slow
def test_a_spare_that_dies_is_replaced_and_harms_nobody(sparing: Daemon) -> None:
    spare = spare_of(sparing)
    before = {model: entry["use_count"] for model, entry in cached(sparing).items()}
    os.kill(spare, signal.SIGKILL)
    spare_of(sparing, but=spare)
    assert {model: entry["use_count"] for model, entry in cached(sparing).items()} == before
    assert all(one["failures"] <= 1 for one in sparing.health()["workers"])


def test_an_edit_takes_them_back(sparing: Daemon) -> None:
    spare = spare_of(sparing)
    sparing.edit("supervision", ONE.replace("spares: 1", "spares: 0"))
    eventually(lambda: gone(spare), "it is ended")
    sparing.edit("supervision", ONE)
    spare_of(sparing)


def test_a_daemon_that_is_killed_leaves_none(sparing: Daemon) -> None:
    """The last of its tests."""
    spare = spare_of(sparing)
    sparing.process.send_signal(signal.SIGKILL)
    sparing.process.wait()
    began = time.monotonic()
    eventually(lambda: gone(spare), "it ends with its daemon")
    assert time.monotonic() - began < 5.0


@pytest.mark.slow
def test_a_daemon_that_stops_ends_its_spare_first(start: Start) -> None:
    running = start({"supervision": ONE})
    spare = spare_of(running)
    assert running.stop() == 0
    assert gone(spare)
    assert not (running.state / "tmp").exists()


@pytest.mark.slow
def test_at_the_warning_mark_there_are_none(start: Start) -> None:
    """Memory is always fuller than this mark."""
    marks = "watermarks: {warning: {enter: 2%, clear: 1%, actions: [warn]}}\n"
    running = start({"supervision": ONE, "memory": marks})
    eventually(lambda: running.health()["memory"]["level"] == "warning", "the mark is reached")
    time.sleep(3.0)
    assert running.health()["spares"] == []
