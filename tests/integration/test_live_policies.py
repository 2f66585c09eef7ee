"""Policies that change under requests: each keeps its generation (R1, R7, R10)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mlxd.policy.strict_yaml import dotted
from tests.integration.conftest import Lend
from tests.integration.talking import (
    ENDLESS,
    Json,
    ask,
    body_for,
    cached,
    eventually,
    generate,
    gone,
    held,
    idle,
    say,
    workers_of,
)
from tests.support.daemon import Daemon
from tests.support.policy_edits import SINGLE, Edited, actual, another, changeable
from tests.support.policy_stream import Streamed, everything, stream_under_reloads, undisturbed
from tests.support.policy_swaps import Swaps, Values, swap

pytestmark = pytest.mark.mlx

ROOT = Path(__file__).parents[2]
SWAPS = 40
REQUESTS = 800
RELOADS = 50
_FAULT = re.compile(r'"level": "(error|critical)"|^[\d:]+ (error|critical)|Traceback', re.MULTILINE)


def _pids(daemon: Daemon) -> Mapping[str, int]:
    return {"daemon": daemon.pid, **workers_of(daemon)}


# -- one generation for one request


def _assert_consistent(run: Swaps, *, swaps: int, requests: int) -> None:
    assert len(run.values) == swaps + 1
    assert len(run.told) >= requests
    assert set(run.kinds) == {"health", "answered", "over the rate", "no slot"}, run.kinds
    assert not run.misfits()
    assert not run.backwards
    assert {told.generation for told in run.told} >= set(list(run.values)[1:-1])


@pytest.mark.slow
def test_every_answer_tells_the_values_of_the_generation_that_it_names(start: Any) -> None:
    daemon: Daemon = start({"limits": Values.of(0).text()})
    run = swap(daemon, ENDLESS, swaps=SWAPS, requests=REQUESTS)
    _assert_consistent(run, swaps=SWAPS, requests=REQUESTS)
    assert not _FAULT.search(daemon.log_text())


# -- what goes on while policies change


def _assert_untouched(run: Streamed) -> None:
    assert run.reloads == RELOADS
    assert not run.unchanged, "these were never changed"
    assert not any(record["done"] for record in run.records), "the stream did not go on"
    before, after = run.workers
    assert len(before) == 1
    assert before <= after, "the worker was replaced"


@pytest.mark.timeout(240)
@pytest.mark.slow
def test_a_stream_says_the_same_while_fifty_reloads_change_every_policy_that_can(
    zoo: Path, tmp_path: Path, served: Daemon
) -> None:
    with everything(tmp_path, zoo, ENDLESS) as (daemon, policies):
        run = stream_under_reloads(daemon, policies, ENDLESS, reloads=RELOADS)
        _assert_untouched(run)
        assert daemon.process.poll() is None
        assert not _FAULT.search(daemon.log_text())
    distinct = len(set(run.tokens))  # of a vocabulary of some hundreds
    assert distinct > min(200, 0.05 * len(run.tokens)), "a text that repeats itself proves nothing"
    expected = undisturbed(served, ENDLESS, min(len(run.tokens), 8000))  # it may say 8,192
    assert run.tokens[: len(expected)] == expected


def test_every_policy_that_can_change_has_another_value() -> None:
    assert {key.name for key in changeable()} >= SINGLE
    for key in changeable():
        if key.name not in SINGLE:
            assert another(key) is not None, key.name


PLAIN = "concurrency: {max_in_flight: 1}\nrate_limit: [{requests: 99, window: 1400ms}]\n"
COMMENTED = (
    "# why\n\n# and why not\n"
    "rate_limit: [\n  {window: 1.4s, requests: 99}]\n"
    "concurrency: {\n  max_in_flight: 1}\n"
)


@pytest.mark.slow
def test_a_change_of_comments_and_layout_applies_nothing_and_moves_the_line(lend: Lend) -> None:
    daemon = lend({"limits": PLAIN})
    with held(daemon) as stream:
        before = (daemon.generation(), _pids(daemon))
        assert _place_of_refusal(daemon).endswith("limits.yaml:2")
        daemon.edit("limits", COMMENTED)
        outcome = daemon.reload()
        after = (daemon.generation(), _pids(daemon))
        stream.read(10)
        assert (outcome["result"], outcome["changes"]) == ("unchanged", [])
        assert after == before
        assert _place_of_refusal(daemon).endswith("limits.yaml:8")
    idle(daemon)


def _place_of_refusal(daemon: Daemon) -> str:
    refused = daemon.http.post("/api/generate", json=generate(ENDLESS, "full", tokens=1))
    assert refused.status_code == 503
    return refused.headers["x-mlxd-policy-place"]


@pytest.mark.slow
def test_another_folder_for_one_model_replaces_its_worker_and_no_other(
    start: Any, zoo: Path
) -> None:
    daemon: Daemon = start()
    for model in ("tiny-a", "tiny-b"):
        say(daemon, model, "warm", tokens=1)
    wanted = say(daemon, ENDLESS, "which", tokens=12)
    expected = ask(daemon, generate(ENDLESS, "beside", tokens=800))["response"]
    before = workers_of(daemon)
    with held(daemon, ENDLESS, "beside", tokens=800) as stream:
        daemon.edit(
            "models", f"dirs: [{zoo}]\nmodels: {{tiny-a: {{path: {zoo / 'tiny-short'}}}}}\n"
        )
        outcome = daemon.reload()
        if outcome["result"] == "applied":  # else the watcher was first
            assert [change["reload"] for change in outcome["changes"]][:1] == ["rolling"]
        assert say(daemon, "tiny-a", "which", tokens=12) == wanted
        eventually(lambda: gone(before["tiny-a"]), "the old worker is gone")
        stream.rest()
    assert stream.text == expected
    assert not gone(before["tiny-b"])
    assert not gone(before[ENDLESS])


@pytest.mark.slow
def test_another_ttl_for_one_model_unloads_that_one_only(start: Any, zoo: Path) -> None:
    daemon: Daemon = start()
    for model in ("tiny-a", "tiny-b"):
        say(daemon, model, "warm", tokens=1)
    before = workers_of(daemon)
    daemon.edit("models", f"dirs: [{zoo}]\nmodels: {{tiny-a: {{ttl: 100ms}}}}\n")
    assert daemon.reload()["generation"] == 2
    eventually(lambda: gone(before["tiny-a"]), "tiny-a is unloaded")
    assert set(cached(daemon)) == {"tiny-b"}
    assert not gone(before["tiny-b"])


# -- what waits for a restart


def _pending(daemon: Daemon) -> tuple[list[str], int]:
    """As /health and /metrics have it."""
    metrics = daemon.http.get("/metrics").text
    shown = re.search(r"^mlxd_policy_pending_restart_fields (\d+)", metrics, re.MULTILINE)
    assert shown is not None
    return sorted(daemon.health()["policy"]["pending_restart"]), int(shown[1])


def test_what_needs_a_restart_is_shown_as_pending_until_it_is_put_back(lend: Lend) -> None:
    daemon = lend()
    keys = changeable(["restart"])
    names = sorted(dotted(actual(key, {})) for key in keys)
    assert len(names) >= 4
    assert _pending(daemon) == ([], 0)
    edited = Edited({})
    edited.save(daemon, [edited.put(actual(key, {}), another(key)) for key in keys])
    daemon.reload()
    assert _pending(daemon) == (names, len(names))
    assert any(names[0] in warning for warning in daemon.health()["warnings"])
    for kind in edited.files:
        daemon.edit(kind, "")
    daemon.reload()
    assert _pending(daemon) == ([], 0)


def test_a_change_that_is_in_force_is_not_shown_as_pending(lend: Lend) -> None:
    daemon = lend()
    before = daemon.generation()
    daemon.edit("timeouts", "generation: 200s\n")
    assert daemon.reload()["generation"] == before + 1
    assert _pending(daemon) == ([], 0)


@pytest.mark.slow
def test_a_request_under_way_keeps_the_limit_it_came_under(start: Any) -> None:
    """An answer's length is bounded by the policies of its start, and so is the header's number."""
    limits = "rate_limit: []\ntokens: {{max_output: {}}}\n"
    daemon: Daemon = start({"limits": limits.format(900)})
    say(daemon, ENDLESS, "warm", tokens=1)
    with held(daemon, tokens=8192) as stream:
        generation = int(stream.response.headers["x-mlxd-policy"])
        daemon.edit("limits", limits.format(3))
        assert daemon.reload()["generation"] == generation + 1
        later: Json = ask(daemon, body_for("/api/generate", ENDLESS, "later", tokens=8192))
        records = stream.rest()
    assert later["eval_count"] == 3
    assert records[-1]["eval_count"] == 900


# -- the program that measures it
