"""What an edit of each kind does, seen by a client of a real daemon."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.conftest import Lend
from tests.integration.talking import ENDLESS, generate, held, workers_of
from tests.support.daemon import Daemon

pytestmark = pytest.mark.mlx

Start = Callable[..., Daemon]
NO_RATE = "rate_limit: []\n"


def until(fact: Callable[[], object], within: float = 60.0) -> None:
    deadline = time.monotonic() + within
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def edit(daemon: Daemon, kind: str, text: str) -> None:
    """Save a file and have it in force."""
    daemon.edit(kind, text)
    outcome = daemon.reload()
    assert outcome["result"] in ("applied", "unchanged"), outcome


def post(daemon: Daemon, model: str = "tiny-a", tokens: int = 1, **more: Any) -> httpx.Response:
    body = generate(model, "hello", tokens=tokens) | {"stream": False, **more}
    return daemon.http.post("/api/generate", json=body)


@pytest.mark.slow
def test_more_slots_are_there_at_once_and_fewer_stop_nothing(start: Start) -> None:
    daemon = start({"limits": f"concurrency: {{max_in_flight: 1}}\n{NO_RATE}"})
    with held(daemon, prompt="x") as stream:
        stream.read(3)
        assert post(daemon).status_code == 503
        edit(daemon, "limits", f"concurrency: {{max_in_flight: 2}}\n{NO_RATE}")
        assert post(daemon).status_code == 200
        with held(daemon, prompt="y") as second:
            second.read(3)
            edit(daemon, "limits", f"concurrency: {{max_in_flight: 1}}\n{NO_RATE}")
            refused = post(daemon)
            assert refused.status_code == 503
            assert refused.headers["x-mlxd-policy-place"] == "policies/limits.yaml:2"
            stream.read(3)
            second.read(3)


def test_limits_follow_their_edits(lend: Lend) -> None:
    """A rate that is limited otherwise forgives nothing; answers that are kept may be forgotten."""
    daemon = lend({"limits": "rate_limit: [{requests: 2}]\n"})
    assert [post(daemon).status_code for _ in range(3)] == [200, 200, 429]
    edit(daemon, "limits", "rate_limit: [{requests: 3, name: another}]\n")
    assert [post(daemon).status_code for _ in range(2)] == [200, 429]
    edit(daemon, "limits", NO_RATE)
    assert post(daemon).status_code == 200
    asked = {"model": "tiny-a", "input": "x", "max_output_tokens": 1}
    kept = f"/v1/responses/{daemon.http.post('/v1/responses', json=asked).json()['id']}"
    assert daemon.http.get(kept).status_code == 200
    edit(daemon, "limits", f"{NO_RATE}responses: {{store: off}}\n")
    assert daemon.http.get(kept).status_code == 404


def test_aliases_chains_and_folders_follow_their_edits(
    lend: Lend, zoo: Path, tmp_path: Path
) -> None:
    daemon = lend({"models": f"dirs: [{zoo}]\n"})
    assert post(daemon, "bee").status_code == 404
    edit(daemon, "models", f"dirs: [{zoo}]\nmodels: {{tiny-b: {{aliases: [bee]}}}}\n")
    assert post(daemon, "bee").status_code == 200
    assert post(daemon, "coding").status_code == 404
    more = tmp_path / "more"
    shutil.copytree(zoo / "tiny-b", more / "tiny-late")
    edit(daemon, "models", f"dirs: [{zoo}, {more}]\nchains: {{coding: [tiny-late]}}\n")
    assert post(daemon, "tiny-late").status_code == 200
    assert post(daemon, "coding").status_code == 200
    assert post(daemon, "bee").status_code == 404
    edit(daemon, "models", f"dirs: [{zoo}]\n")
    assert post(daemon, "tiny-late").status_code == 404


@pytest.mark.parametrize(
    ("worker", "code", "words"),
    [
        ("backoff: {base: 60s}", "model_load_failed", "it is not tried again for"),
        pytest.param(
            "breaker: {failures: 1, open: 50s}",
            "breaker_open",
            "the next probe is in",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_setting_that_a_model_cannot_have_is_named_at_once_and_while_it_rests(
    lend: Lend, zoo: Path, tmp_path: Path, worker: str, code: str, words: str
) -> None:
    """Its heads have no multiple of 64 numbers."""
    shutil.copytree(zoo / "tiny-a", tmp_path / "never-served")
    models = f"dirs: [{tmp_path}]\nmodels:\n  never-served:\n    kv_bits: 3\n"
    daemon = lend({"supervision": f"worker: {{{worker}}}\n"})
    edit(daemon, "models", models)
    for again in (False, True):
        refused = post(daemon, "never-served")
        assert refused.status_code == 503, refused.text
        assert (words in refused.text) == again
        assert refused.headers["x-mlxd-code"] == (code if again else "model_load_failed")
        assert refused.headers["x-mlxd-policy-key"] == "models.models.never-served.kv_bits"
        assert refused.headers["x-mlxd-policy-place"] == "policies/models.yaml:5"
        assert "the same request once models.models.never-served.kv_bits is none" in refused.text
    edit(daemon, "models", models.replace("bits: 3", "bits: none"))
    assert post(daemon, "never-served").status_code == 200, "it is true"


def held_of(daemon: Daemon, name: str) -> str | None:
    """Why a setting of a model is not in force for it."""
    report = daemon.admin.get("/admin/policy/explain", key=f"models.models.{name}.kv_bits")
    return report["values"][0]["held"]


@pytest.mark.parametrize(
    "room",
    [
        pytest.param("", id="beside", marks=pytest.mark.slow),
        pytest.param("max_loaded: 1\n", id="in its place"),
    ],
)
def test_a_model_that_an_edit_keeps_from_being_loaded_is_served_as_before(
    lend: Lend, zoo: Path, tmp_path: Path, room: str
) -> None:
    """No request fails: neither what is under way, nor what waits for the load that fails."""
    name = "served-before"
    shutil.copytree(zoo / "tiny-a", tmp_path / name)
    good = f"dirs: [{tmp_path}]\n{room}models: {{{name}: {{kv_bits: none}}}}\n"
    daemon = lend({"models": good, "limits": NO_RATE})
    first = post(daemon, name, 8).json()["response"]
    edit(daemon, "models", good.replace("kv_bits: none", "kv_bits: 3"))
    for _ in range(3):
        answer = post(daemon, name, 8)
        assert (answer.status_code, answer.json().get("response")) == (200, first), answer.text
    until(lambda: held_of(daemon, name))
    assert "a head's size is no multiple" in str(held_of(daemon, name))
    health = daemon.health()
    assert health["status"] == "warning"
    (warning,) = [words for words in health["warnings"] if name in words]
    assert f"model {name} is served as it was loaded before an edit: " in warning
    assert {one["model"]: one["state"] for one in health["workers"]}[name] == "serving"
    missing = good.replace("kv_bits: none", f"adapter: {tmp_path}/no-such")
    edit(daemon, "models", missing)
    assert post(daemon, name, 8).json()["response"] == first
    edit(daemon, "models", good)
    assert post(daemon, name, 8).json()["response"] == first
    assert held_of(daemon, name) is None
    assert daemon.health()["warnings"] == []


def test_a_line_that_a_comment_has_moved_is_told_where_it_is_now(
    lend: Lend, zoo: Path, tmp_path: Path
) -> None:
    """Though nothing is applied by that: by the guard of memory, and of a load without room."""
    shutil.copytree(zoo / "tiny-a", tmp_path / "no-room")
    lines = (
        "watermarks: {warning: {enter: 1%, clear: 0.5%}}\n"
        "reserve: {system: 4TiB, when_full: refuse}\n"
    )
    daemon = lend({"memory": lines, "models": f"dirs: [{tmp_path}]\n", "limits": NO_RATE})
    for moved in (0, 2):
        edit(daemon, "memory", moved * "# a comment\n" + lines)
        until(lambda: "warning.enter" in str(daemon.health()["warnings"]), 20)
        assert f"policies/memory.yaml:{2 + moved})" in str(daemon.health()["warnings"])
        refused = post(daemon, "no-room")
        assert refused.headers.get("x-mlxd-policy-place") == f"policies/memory.yaml:{3 + moved}"


@pytest.mark.slow
def test_an_added_preload_is_loaded_and_a_removed_one_is_not_killed(
    start: Start, zoo: Path
) -> None:
    daemon = start({"models": f"dirs: [{zoo}]\n"})
    edit(daemon, "models", f"dirs: [{zoo}]\npreload: [tiny-a, no-such]\n")
    until(lambda: "tiny-a" in workers_of(daemon))
    until(lambda: any("no-such" in warning for warning in daemon.health()["warnings"]))
    before = workers_of(daemon)
    edit(daemon, "models", f"dirs: [{zoo}]\npreload: [tiny-a, tiny-b]\n")
    until(lambda: "tiny-b" in workers_of(daemon))
    edit(daemon, "models", f"dirs: [{zoo}]\n")
    assert post(daemon).status_code == 200
    assert workers_of(daemon)["tiny-a"] == before["tiny-a"]


@pytest.mark.slow
def test_what_is_listed_for_preload_is_there_after_a_start(start: Start, zoo: Path) -> None:
    daemon = start({"models": f"dirs: [{zoo}]\npreload: [tiny-b]\n"})
    until(lambda: "tiny-b" in workers_of(daemon))
    assert post(daemon, "tiny-b", keep_alive=0).status_code == 200
    until(lambda: "tiny-b" not in workers_of(daemon))  # a client may still have it unloaded


@pytest.mark.slow
def test_time_limits_and_body_limits_follow_their_edits(start: Start) -> None:
    daemon = start({"limits": NO_RATE})
    edit(daemon, "timeouts", "generation: 300ms\nfirst_byte: 100ms\nfirst_token: 200ms\n")
    answer = post(daemon, ENDLESS, tokens=5000)
    assert answer.status_code == 504
    assert answer.headers["x-mlxd-policy-key"] == "timeouts.generation"
    edit(daemon, "timeouts", "generation: 300s\n")
    edit(daemon, "server", "http: {max_body: 64B}\n")
    assert post(daemon, prompt="x" * 200).status_code == 413


def test_the_log_follows_its_level_and_format(lend: Lend) -> None:
    daemon = lend({"server": "log: {level: info, format: json}\n"})
    edit(daemon, "server", "log: {level: warning, format: text}\n")
    before = len(daemon.log_text())
    daemon.http.get("/api/version")
    daemon.edit("server", "log: {level: loud}\n")
    daemon.reload()
    after = daemon.log_text()[before:]
    assert "/api/version" not in after
    assert " warning policies refused" in after


class TestDryRun:
    """A rule on trial refuses nobody, counts, and marks the answer."""

    @staticmethod
    def counted(daemon: Daemon, rule: str) -> float:
        lines = daemon.http.get("/metrics").text.splitlines()
        name = f'mlxd_policy_would_deny_total{{rule="{rule}"}}'
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    @pytest.mark.slow
    def test_of_the_rate_and_of_slots(self, start: Start) -> None:
        daemon = start(
            {
                "limits": "concurrency: {max_in_flight: 1, mode: dry_run}\n"
                "rate_limit: [{requests: 1, mode: dry_run}]\n"
            }
        )
        assert "x-mlxd-would-deny" not in post(daemon).headers
        marked = post(daemon)
        assert marked.status_code == 200
        assert marked.headers["x-mlxd-would-deny"] == "rate_limit:per-client"
        with held(daemon, prompt="x") as stream:
            assert stream.response.headers["x-mlxd-would-deny"] == "rate_limit:per-client"
            stream.read(2)
            both = post(daemon)
        assert both.status_code == 200
        assert both.headers["x-mlxd-would-deny"] == "rate_limit:per-client, concurrency"
        assert self.counted(daemon, "rate_limit:per-client") == 3
        assert self.counted(daemon, "concurrency") == 1

    def test_a_story_tells_it_where_it_happened(self, lend: Lend) -> None:
        daemon = lend({"limits": "rate_limit: [{requests: 1, mode: dry_run}]\n"})
        post(daemon)
        id = post(daemon).headers["x-request-id"]
        stories = daemon.admin.get("/admin/requests")["requests"]
        (story,) = (one for one in stories if one["id"] == id)
        told = [note["what"] for note in story["notes"]]
        assert told.index("would_deny") < told.index("admitted")

    @pytest.mark.slow
    def test_of_the_length_of_prompts(self, start: Start) -> None:
        daemon = start({"limits": f"tokens: {{max_prompt: 3, mode: dry_run}}\n{NO_RATE}"})
        marked = post(daemon, prompt="one two three four five six seven")
        assert (marked.status_code, marked.headers["x-mlxd-would-deny"]) == (200, "tokens")
        edit(daemon, "limits", f"tokens: {{max_prompt: 3}}\n{NO_RATE}")
        assert post(daemon, prompt="one two three four five six seven").status_code == 400
        edit(daemon, "limits", f"tokens: {{max_prompt: 3, mode: 'off'}}\n{NO_RATE}")
        free = post(daemon, prompt="one two three four five six seven")
        assert free.status_code == 200
        assert "x-mlxd-would-deny" not in free.headers

    def test_of_hosts_and_origins(self, lend: Lend) -> None:
        daemon = lend({"clients": "hosts: {mode: dry_run}\ncors: {mode: dry_run}\n"})
        headers = {"Host": "evil.example", "Origin": "https://other.example"}
        marked = daemon.http.get("/api/version", headers=headers)
        assert (marked.status_code, marked.headers["x-mlxd-would-deny"]) == (200, "cors, hosts")
        edit(daemon, "clients", "hosts: {mode: enforce}\ncors: {mode: enforce}\n")
        assert daemon.http.get("/api/version", headers=headers).status_code == 403
