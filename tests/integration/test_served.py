"""What a client got is in the metrics once it has it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.conftest import Start
from tests.integration.talking import ENDLESS, eventually, held, idle, say
from tests.support.daemon import Daemon

pytestmark = pytest.mark.mlx


def values(daemon: Daemon) -> dict[tuple[str | None, ...], float]:
    """By name and values of labels, in the order of these."""
    families = text_string_to_metric_families(daemon.http.get("/metrics").text)
    return {
        (
            sample.name.removeprefix("mlxd_"),
            *map(sample.labels.get, sorted(sample.labels)),
        ): sample.value
        for family in families
        for sample in family.samples
    }


def test_an_answer_is_counted_with_its_tokens_and_its_times(served: Daemon) -> None:
    before = values(served)

    def more(*key: str) -> float:
        return values(served).get(key, 0.0) - before.get(key, 0.0)

    say(served, ENDLESS, "count me", tokens=7)
    eventually(lambda: more("requests_total", "ok", "answer") == 1, "it is counted")
    assert more("tokens_total", "completion", ENDLESS) == 7
    assert more("tokens_total", "prompt", ENDLESS) > 0
    assert more("time_to_first_token_seconds_count", ENDLESS) == 1
    assert more("token_gap_seconds_count", ENDLESS) == 1
    assert more("token_gap_seconds_sum", ENDLESS) > 0
    assert more("request_seconds_count", "answer") == 1
    assert more("worker_steps_total", ENDLESS) >= 7
    served.http.post("/api/generate", json={"model": "nobody", "prompt": "x"})
    eventually(lambda: more("requests_total", "model_not_found", "answer") == 1, "so is that")


def test_what_runs_is_told_by_model(served: Daemon) -> None:
    with held(served):
        assert values(served)["worker_running", ENDLESS] == 1
    idle(served)
    assert values(served)["worker_running", ENDLESS] == 0


def test_while_a_model_is_replaced_each_series_is_told_once(start: Start, zoo: Path) -> None:
    daemon = start()
    with held(daemon):
        before = daemon.generation()
        daemon.edit("models", f"dirs: [{zoo}]\nmodels: {{{ENDLESS}: {{path: {zoo / 'tiny-b'}}}}}\n")
        daemon.wait_for_generation(before, within=5)
        say(daemon, ENDLESS, "of the new one", tokens=2)
        assert len(workers_of_name(daemon)) == 2, "the old one ends when its stream does"
        series = [
            line.rpartition(" ")[0]
            for line in daemon.http.get("/metrics").text.splitlines()
            if not line.startswith("#")
        ]
        assert [one for one, times in Counter(series).items() if times > 1] == []
        assert values(daemon)["worker_running", ENDLESS] == 1, "the stream of the old one"


def workers_of_name(daemon: Daemon) -> list[int]:
    workers = daemon.health()["workers"]
    return [worker["pid"] for worker in workers if worker["model"] == ENDLESS]
