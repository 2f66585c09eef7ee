"""`mlxd explain` tells what became of a request: one that was served, refused, replayed, left."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import IMPATIENT
from tests.integration.talking import ENDLESS, Held, eventually, generate, held, idle, workers_of
from tests.support import command
from tests.support.daemon import Daemon, daemon

pytestmark = pytest.mark.mlx

Json = dict[str, Any]

LIMITS = "concurrency: {max_in_flight: 1, max_waiting: 0}\nrate_limit: []\n"


@pytest.fixture(scope="module")
def running(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with one slot."""
    policies = {
        "limits": LIMITS,
        "memory": "eviction: {protect_recent: 0s, min_residency: 0s}\n",
        "models": f"dirs: [{zoo}]\nmax_loaded: 1\n",
        "supervision": IMPATIENT,
    }
    with daemon(tmp_path_factory.mktemp("explained"), models=zoo, policies=policies) as started:
        yield started


def ask(running: Daemon, id: str, model: str = "tiny-a", tokens: int = 3) -> int:
    body = generate(model, "what nobody else is to know", tokens=tokens)
    headers = {"X-Request-Id": id}
    return running.http.post("/api/generate", json=body, headers=headers).status_code


def explained(running: Daemon, *arguments: str, status: int = 0) -> str:
    done = command.mlxd("explain", *arguments, "--state", running.state)
    assert done.returncode == status, done.stderr
    return done.stdout or done.stderr


def story(running: Daemon, id: str) -> Json:
    """Of one that has ended: its client may know that a moment before the daemon writes it down."""

    def ended() -> Json | None:
        (found,) = json.loads(explained(running, id, "--json"))["requests"]
        return dict(found) if found["ended"] is not None else None

    return eventually(ended, f"{id} has ended") or {}


def notes(told: Json) -> list[str]:
    return [note["what"] for note in told["notes"] if note["what"] not in {"admitted", "queued"}]


def facts_of(told: Json, what: str) -> Json:
    (facts,) = [note["facts"] for note in told["notes"] if note["what"] == what]
    return dict(facts)


def test_a_request_that_was_served(running: Daemon) -> None:
    assert ask(running, "loads") == ask(running, "finds it loaded") == 200
    first, second = story(running, "loads"), story(running, "finds it loaded")
    for told in first, second:
        assert notes(told) == ["asked", "leased", "started", "reused", "finished"]
        assert (told["status"], told["code"], told["model"]) == (200, "", "tiny-a")
        assert (told["stream"], told["want"], told["completion_tokens"]) == (True, "answer", 3)
        assert told["prompt_tokens"] > 0
        assert told["leased"] <= told["accepted"] <= told["first_token"] <= told["ended"]
    assert facts_of(first, "leased")["loaded"]
    assert not facts_of(second, "leased")["loaded"]
    lines = explained(running, "loads")
    assert "its model was loaded in " in lines
    assert f"{first['prompt_tokens']} of the prompt, 0 of them cached" in lines
    assert "nobody else" not in lines + explained(running, "loads", "--json")


def test_one_that_was_refused_and_one_that_waits_while_it_is_told(running: Daemon) -> None:
    with held(running, "tiny-endless"):
        assert ask(running, "too many") == 503
        newest = json.loads(explained(running, "--json", "-n", "2"))["requests"]
        assert newest[0]["id"] == "too many"
        assert newest[1]["ended"] is None
        assert "it is under way" in explained(running, newest[1]["id"])
    idle(running)
    told = story(running, "too many")
    assert (told["status"], told["code"]) == (503, "overloaded")
    refused = facts_of(told, "refused")
    assert refused["policy"] == "limits.concurrency.max_in_flight"
    assert refused["place"] == "policies/limits.yaml:2"
    lines = explained(running, "too many")
    assert "decided limits.concurrency.max_in_flight: 1 (policies/limits.yaml:2)" in lines
    left = story(running, newest[1]["id"])
    assert (left["status"], notes(left)[-1]) == (499, "left")
    assert left["completion_tokens"] > 0
    assert "the client left" in explained(running, newest[1]["id"])


def test_one_that_waits_and_is_served_then(running: Daemon) -> None:
    before = running.generation()
    running.edit("limits", LIMITS.replace("max_waiting: 0", "max_waiting: 5"))
    running.wait_for_generation(before, 10.0)
    with ThreadPoolExecutor(1) as threads:
        with held(running):
            answer = threads.submit(ask, running, "patient", ENDLESS)
            eventually(lambda: "patient" in explained(running), "it has come")
            eventually(lambda: "in the queue" in explained(running, "patient"), "it waits")
            assert "under way" in explained(running, "patient")
        assert answer.result() == 200
    told = story(running, "patient")
    assert [note["what"] for note in told["notes"]][:4] == ["asked", "queued", "admitted", "leased"]
    queued = facts_of(told, "queued")
    assert queued["position"] == 1
    assert queued["policy"] == "limits.concurrency.max_in_flight"
    assert told["admitted"] > 0
    assert "(policies/limits.yaml:2)" in explained(running, "patient")


@pytest.mark.slow
def test_one_that_another_had_to_leave_memory_for(running: Daemon) -> None:
    assert ask(running, "a") == ask(running, "b", model="tiny-b") == 200
    assert facts_of(story(running, "b"), "leased")["evicted"] == "tiny-a"
    assert "tiny-a had to leave" in explained(running, "b")
    told = running.admin.get("/admin/events", types="evict")["events"][-1]["data"]
    assert told | {"bytes": 0, "needed": 0, "available": 0, "place": ""} == {
        "model": "tiny-a", "reason": "load", "for": "tiny-b", "bytes": 0,
        "needed": 0, "available": 0, "policy": "models.max_loaded", "place": "",
    }  # fmt: skip


@pytest.mark.slow
def test_one_whose_worker_died(running: Daemon) -> None:
    ask(running, "warm", ENDLESS, tokens=1)
    worker = workers_of(running)[ENDLESS]
    body = generate(ENDLESS, "on and on", tokens=1000)
    headers = {"X-Request-Id": "killed"}
    with running.http.stream("POST", "/api/generate", json=body, headers=headers) as response:
        stream = Held(response)
        stream.read(5)
        os.kill(worker, signal.SIGKILL)
        assert stream.rest()[-1]["done"]
    told = story(running, "killed")
    assert (told["status"], told["replays"], told["completion_tokens"]) == (200, 1, 1000)
    replayed = facts_of(told, "replayed")
    assert replayed["reason"] == "SIGKILL"
    assert 0 < replayed["tokens"] < 1000
    assert notes(told)[-1] == "finished"
    assert "its worker was gone (SIGKILL)" in explained(running, "killed")


def test_whatever_an_id_is_made_of_it_is_found(running: Daemon) -> None:
    for id in "a/b?c=%2F&d #e", "..", "-":
        assert ask(running, id) == 200
        assert story(running, id)["id"] == id
    assert ask(running, "-") == 200
    assert len(json.loads(explained(running, "-", "--json"))["requests"]) == 2


def test_what_was_wrong_in_itself_tells_nothing_of_what_it_said(running: Daemon) -> None:
    body = generate("tiny-a", "x", tokens=1) | {"format": {"type": "nobody knows this"}}
    headers = {"X-Request-Id": "wrong"}
    assert running.http.post("/api/generate", json=body, headers=headers).status_code == 400
    told = explained(running, "wrong", "--json")
    assert json.loads(told)["requests"][0]["code"] == "invalid_request"
    assert "nobody knows" not in told


def test_the_last_ones_are_listed_and_an_unknown_one_is_said_to_be(running: Daemon) -> None:
    ask(running, "the last")
    head, *rows = explained(running, "-n", "3").splitlines()
    assert head.split() == ["came", "request", "by", "model", "took", "ended"]
    assert len(rows) == 3
    assert "the last" in rows[-1]
    assert "no request with the id 'never' is known" in explained(running, "never", status=1)
    assert "server.stories" in explained(running, "never", status=1)


def test_the_room_for_them_is_live(running: Daemon) -> None:
    ask(running, "to be forgotten")
    before = running.generation()
    running.edit("server", "stories: 1\n")
    running.wait_for_generation(before, 10.0)
    ask(running, "the only one")
    eventually(lambda: len(running.admin.get("/admin/requests")["requests"]) == 1, "one is kept")
    explained(running, "to be forgotten", status=1)
