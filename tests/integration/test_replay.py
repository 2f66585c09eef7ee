"""A worker that dies or hangs, and its requests that go on with the next one, token by token the
same, in the same answer.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.conftest import IMPATIENT, NO_LIMITS, Start
from tests.integration.talking import (
    ENDLESS,
    IN_TURN,
    TRIES,
    Json,
    body_for,
    cached,
    eventually,
    generate,
    gone,
    held,
    idle,
    piece_of,
    say,
    whole_text,
    workers_of,
)
from tests.support import model_maker
from tests.support.daemon import Daemon, daemon

pytestmark = pytest.mark.mlx

TIMEOUTS = "inter_token_stall: 4s\nworker_cancel_ack: 500ms\nfirst_token: 60s\n"
MANY = f"{IMPATIENT}replay: {{attempts: 10}}\nquarantine: {{kills: 1000}}\n"
LONG = 600
"""Tokens of an answer that is not over before somebody has struck who waits for something first."""
ENOUGH = 300
"""The same, where nobody waits."""
STALL_SECONDS = 20.0
"""Above the stall limit, granted twice to a daemon that stood still; below the first token's."""
OTHER = "tiny-b"


@pytest.fixture(scope="module")
def patient(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that replays every request, as often as it takes."""
    folder = tmp_path_factory.mktemp("patient")
    policies = {"limits": NO_LIMITS, "timeouts": TIMEOUTS, "supervision": MANY}
    with daemon(folder, models=zoo, policies=policies) as running:
        yield running


@pytest.fixture(scope="module")
def strict(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that replays a request once, and refuses one that a worker died of."""
    policies = {
        "limits": NO_LIMITS,
        "supervision": f"{IMPATIENT}replay: {{attempts: 1}}\nquarantine: {{kills: 1}}\n",
    }
    with daemon(tmp_path_factory.mktemp("strict"), models=zoo, policies=policies) as running:
        yield running


def _replays(running: Daemon, outcome: str) -> float:
    """As the metrics have it."""
    name = f'mlxd_replays_total{{outcome="{outcome}"}} '
    lines = running.http.get("/metrics").text.splitlines()
    return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))


def _strike(running: Daemon, number: int, model: str = ENDLESS) -> int:
    """What it has sent may be read long after its end: wait for one that serves."""
    pid = eventually(lambda: _serving(running, model), f"a worker of {model} serves")
    os.kill(pid, number)
    return pid


def _serving(running: Daemon, model: str) -> int:
    workers = running.health()["workers"]
    found = [one["pid"] for one in workers if (one["model"], one["state"]) == (model, "serving")]
    return int(found[0]) if found else 0


def _until_replayed(running: Daemon, ask_and_strike: Callable[[int], None]) -> None:
    """Each time with the worker that serves; once more where the answer was over before."""
    for _ in range(TRIES):
        say(running, ENDLESS, "warm", tokens=1)
        pid = eventually(lambda: _serving(running, ENDLESS), f"a worker of {ENDLESS} serves")
        completed = _replays(running, "completed")
        ask_and_strike(pid)
        idle(running)
        if (now := _replays(running, "completed")) != completed:
            assert now == completed + 1
            assert workers_of(running)[ENDLESS] != pid
            return
    raise AssertionError("no replay was counted")


def _replaced(running: Daemon, first: int) -> bool:
    """Whether another worker has the model loaded."""
    model = cached(running).get(ENDLESS, {"is_loading": True})
    return workers_of(running).get(ENDLESS, first) != first and not model["is_loading"]


class Stream:
    """One streamed answer in any dialect, read piece by piece."""

    def __init__(self, path: str, response: httpx.Response) -> None:
        self.path = path
        self.lines = response.iter_lines()
        self.records: list[Json] = []
        self.done = False

    def read(self, pieces: int = 1_000_000) -> None:
        """Until so many records with text have come, or its end."""
        for line in self.lines:
            data = line.removeprefix("data: ")
            if data == "[DONE]":
                self.done = True
                continue
            if not data or data.startswith((":", "id: ")):
                continue
            self.records.append(json.loads(data))
            pieces -= bool("error" not in self.records[-1] and self._text(self.records[-1]))
            if not pieces:
                return

    def _text(self, record: Json) -> str:
        return piece_of(self.path, record) if record.get("choices", True) else ""

    @property
    def text(self) -> str:
        assert not [record for record in self.records if "error" in record], self.records[-1]
        return "".join(map(self._text, self.records))

    @property
    def finish(self) -> Any:
        """Why it ended, and how many tokens it took."""
        *_, last = self.records
        if "done_reason" in last:
            return last["done_reason"], last["eval_count"]
        reasons = [r["choices"][0]["finish_reason"] for r in self.records if r["choices"]]
        assert self.done
        return [reason for reason in reasons if reason]


GREEDY: Json = {"temperature": 0}
SEEDED: Json = {"temperature": 0.9, "seed": 11}
SAMPLINGS = pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
APIS_AND_SAMPLINGS = pytest.mark.parametrize(
    ("path", "sampling"),
    [
        pytest.param("/v1/completions", SEEDED, id="openai-seeded"),
        pytest.param("/api/generate", SEEDED, id="ollama-seeded", marks=pytest.mark.slow),
        pytest.param("/v1/completions", GREEDY, id="openai-greedy", marks=pytest.mark.slow),
        pytest.param("/api/generate", GREEDY, id="ollama-greedy", marks=pytest.mark.slow),
    ],
)
"""One for all in the short form: most other tests here are of Ollama's words, and greedy."""


@APIS_AND_SAMPLINGS
def test_a_stream_goes_on_exactly_where_a_killed_worker_left_it(
    patient: Daemon, path: str, sampling: Json
) -> None:
    body = body_for(path, ENDLESS, "exact", tokens=ENOUGH, **sampling) | {"stream": True}
    with patient.http.stream("POST", path, json=body) as response:
        undisturbed = Stream(path, response)
        undisturbed.read()

    def kill(pid: int) -> None:
        with patient.http.stream("POST", path, json=body) as response:
            stream = Stream(path, response)
            stream.read(5)
            os.kill(pid, signal.SIGKILL)
            stream.read()
        assert stream.text == undisturbed.text
        assert stream.finish == undisturbed.finish

    _until_replayed(patient, kill)


@pytest.mark.slow
def test_vectors_are_those_of_an_undisturbed_worker(patient: Daemon) -> None:
    texts = [f"{n} server token fox " * (n % 10 + 1) for n in range(200)]
    body: Json = {"model": ENDLESS, "input": texts}
    undisturbed = patient.http.post("/api/embed", json=body, timeout=100).json()["embeddings"]
    completed = _replays(patient, "completed")
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(patient.http.post, "/api/embed", json=body, timeout=100)
        eventually(lambda: patient.health()["active_requests"], "the request runs")
        time.sleep(0.1)
        _strike(patient, signal.SIGKILL)
        answered = answer.result(100)
    assert answered.status_code == 200
    assert answered.json()["embeddings"] == undisturbed
    assert _replays(patient, "completed") > completed


@pytest.mark.parametrize("path", IN_TURN)
@pytest.mark.slow
def test_a_whole_answer_is_that_of_an_undisturbed_worker(patient: Daemon, path: str) -> None:
    body = body_for(path, ENDLESS, "whole", tokens=LONG)
    undisturbed = patient.http.post(path, json=body)
    completed = _replays(patient, "completed")
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(patient.http.post, path, json=body)
        eventually(lambda: patient.health()["active_requests"], "the request runs")
        time.sleep(0.1)
        _strike(patient, signal.SIGKILL)
        answered = answer.result(60)
    assert answered.status_code == 200
    assert whole_text(path, answered.json()) == whole_text(path, undisturbed.json())
    assert _replays(patient, "completed") == completed + 1


def test_a_worker_that_dies_before_the_first_token_is_not_noticed(patient: Daemon) -> None:
    """A worker that is stopped before it can say anything."""
    prompt = "word " * 200
    body = generate(ENDLESS, prompt, tokens=8)
    expected = say(patient, ENDLESS, prompt, tokens=8)
    completed = _replays(patient, "completed")
    with ThreadPoolExecutor(1) as pool:
        pid = _strike(patient, signal.SIGSTOP)
        answer = pool.submit(patient.http.post, "/api/generate", json=body | {"stream": False})
        eventually(lambda: patient.health()["active_requests"], "the request runs")
        os.kill(pid, signal.SIGKILL)
        answered = answer.result(60)
    assert answered.status_code == 200
    assert answered.json()["response"] == expected
    assert _replays(patient, "completed") == completed + 1


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGSEGV,
        *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGKILL, signal.SIGABRT)),
    ],
)
def test_streams_of_another_model_are_exact_and_notice_nothing(
    patient: Daemon, number: signal.Signals
) -> None:
    mine = say(patient, ENDLESS, "mine", tokens=ENOUGH)
    other = say(patient, OTHER, "other", tokens=40)
    pid = workers_of(patient).get(OTHER)
    with held(patient, prompt="mine", tokens=ENOUGH) as stream:
        body = generate(OTHER, "other", tokens=40)
        with patient.http.stream("POST", "/api/generate", json=body) as response:
            beside = Stream("/api/generate", response)
            beside.read(1)
            _strike(patient, number)
            beside.read()
        assert stream.rest()[-1]["done_reason"] == "length"
        assert stream.text == mine
    assert beside.text == other
    assert workers_of(patient)[OTHER] == pid
    idle(patient)


def test_a_stopped_workers_stream_goes_on_within_the_stall_limit(patient: Daemon) -> None:
    expected = say(patient, ENDLESS, "stop", tokens=ENOUGH)

    def stop(pid: int) -> None:
        with held(patient, prompt="stop", tokens=ENOUGH) as stream:
            os.kill(pid, signal.SIGSTOP)
            began = time.monotonic()
            eventually(lambda: gone(pid) or not patient.health()["active_requests"], "it is killed")
            assert time.monotonic() - began < STALL_SECONDS
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
            stream.rest()
        assert stream.text == expected

    _until_replayed(patient, stop)


@pytest.mark.slow
def test_one_that_is_struck_again_and_again_is_exact_all_the_same(patient: Daemon) -> None:
    expected = say(patient, ENDLESS, "again", tokens=LONG)
    with held(patient, prompt="again", tokens=LONG) as stream:
        for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGKILL):
            stream.read(20)
            struck = _strike(patient, number)
            eventually(partial(_replaced, patient, struck), "another worker")
        assert stream.rest()[-1]["eval_count"] == LONG
        assert stream.text == expected


@pytest.mark.slow
def test_the_choices_of_one_request_all_go_on_and_are_exact(patient: Daemon) -> None:
    """Equal but for their seeds; each is a suspect."""
    path = "/v1/completions"
    body = body_for(path, ENDLESS, "choices", tokens=LONG, **SEEDED) | {"n": 3}
    whole = patient.http.post(path, json=body).json()["choices"]
    texts = ["", "", ""]
    with patient.http.stream("POST", path, json=body | {"stream": True}) as response:
        stream = Stream(path, response)
        stream.read(9)
        _strike(patient, signal.SIGSEGV)
        stream.read()
    for record in stream.records:
        texts[record["choices"][0]["index"]] += record["choices"][0]["text"]
    assert stream.done
    assert texts == [choice["text"] for choice in whole]
    idle(patient)


@pytest.mark.slow
def test_several_that_ran_together_all_go_on_and_are_exact(patient: Daemon) -> None:
    """Suspects, that run alone for a while: a death by SIGSEGV accuses."""
    prompts = [f"together {number}" for number in range(4)]
    expected = [say(patient, ENDLESS, prompt, tokens=LONG) for prompt in prompts]

    def run(prompt: str) -> str:
        with (
            httpx.Client(base_url=patient.url, timeout=60) as client,
            held(patient, prompt=prompt, tokens=LONG, client=client) as stream,
        ):
            stream.rest()
            return stream.text

    with ThreadPoolExecutor(len(prompts)) as pool:
        runs = [pool.submit(run, prompt) for prompt in prompts]
        eventually(lambda: patient.health()["active_requests"] == len(prompts), "all run")
        time.sleep(0.2)
        _strike(patient, signal.SIGSEGV)
        assert [running.result(90) for running in runs] == expected
    assert patient.health()["quarantined_requests"] == []


@APIS_AND_SAMPLINGS
@pytest.mark.slow
def test_one_that_makes_way_for_a_suspect_goes_on_exactly_where_it_was(
    patient: Daemon, path: str, sampling: Json
) -> None:
    body = body_for(path, ENDLESS, "mine", tokens=LONG, **sampling) | {"stream": True}
    _make_way(patient, path, body, ENDLESS)


@SAMPLINGS
@pytest.mark.slow
def test_so_does_one_whose_engine_does_one_after_the_other(
    start: Start, tmp_path: Path, sampling: Json
) -> None:
    """The suspect is done first, all of it."""
    model_maker.make_model(tmp_path / "zoo" / "serial", model_maker.UNMERGEABLE)
    running = start({"supervision": MANY}, models=tmp_path / "zoo")
    path = "/api/generate"
    body = body_for(path, "serial", "mine", tokens=200, **sampling) | {"stream": True}
    _make_way(running, path, body, "serial")


def _make_way(running: Daemon, path: str, body: Json, model: str) -> None:
    """Somebody repeats a request that is under suspicion, while another one runs."""
    with running.http.stream("POST", path, json=body) as response:
        undisturbed = Stream(path, response)
        undisturbed.read()
    suspect = generate(model, f"suspect {path} {body}", tokens=50)
    with httpx.Client(base_url=running.url, timeout=60) as other:
        with other.stream("POST", "/api/generate", json=suspect) as response:
            Stream("/api/generate", response).read(2)
            pid = _strike(running, signal.SIGSEGV, model)
            eventually(lambda: _serving(running, model) != pid, "its death is known")
        idle(running)
        say(running, model, "there again", tokens=1)
        with running.http.stream("POST", path, json=body) as response:
            stream = Stream(path, response)
            stream.read(3)
            answer = other.post("/api/generate", json=suspect | {"stream": False})
            assert answer.json()["eval_count"] == 50
            assert len(stream.records) < len(undisturbed.records) / 2
            stream.read()
    assert stream.text == undisturbed.text
    assert stream.finish == undisturbed.finish
    idle(running)


@pytest.mark.slow
def test_it_does_not_go_on_in_weights_that_have_taken_the_place_of_its_own(
    start: Start, zoo: Path, tmp_path: Path
) -> None:
    """Those of another model of the same shape: no header tells them apart."""
    folder, other = _two_alike(zoo, tmp_path)
    running = start({"supervision": MANY}, models=folder.parent)
    before = say(running, ENDLESS, "mine", tokens=9)
    with held(running, tokens=LONG) as stream:
        other.replace(folder / other.name)
        _strike(running, signal.SIGKILL)
        last = stream.rest()[-1]
    assert "has changed since this answer was begun" in last["error"]
    assert say(running, ENDLESS, "mine", tokens=9) != before


@pytest.mark.slow
def test_a_whole_answer_begins_anew_in_them(start: Start, zoo: Path, tmp_path: Path) -> None:
    folder, other = _two_alike(zoo, tmp_path)
    running = start({"supervision": MANY}, models=folder.parent)
    before = say(running, ENDLESS, "mine", tokens=LONG)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(say, running, ENDLESS, "mine", tokens=LONG)
        eventually(lambda: running.health()["active_requests"], "it is asked")
        other.replace(folder / other.name)
        _strike(running, signal.SIGKILL)
        told = asked.result()
    assert told == say(running, ENDLESS, "mine", tokens=LONG) != before


def _two_alike(zoo: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The folder of a model, and weights that may take the place of its own."""
    folder = tmp_path / "zoo" / ENDLESS
    shutil.copytree(zoo / ENDLESS, folder)
    shape = model_maker.Shape(layers=1, spread=3.0, context=65536)
    return folder, model_maker.make_model(tmp_path / "other", shape, seed=4) / "model.safetensors"


@pytest.mark.slow
def test_a_daemon_that_is_told_to_stop_ends_those_who_wait_for_a_worker(start: Start) -> None:
    running = start({"supervision": MANY, "server": "drain: {grace: 1s, not_ready_delay: 1ms}\n"})
    say(running, ENDLESS, "warm", tokens=1)
    with held(running) as stream:
        os.kill(workers_of(running)[ENDLESS], signal.SIGSTOP)
        assert running.stop() == 0
        last = stream.rest()[-1]
    assert "stopping" in last["error"]


# -- what policy says


@pytest.mark.slow
def test_no_more_replays_than_policy_says(strict: Daemon) -> None:
    failed = _replays(strict, "failed")
    with held(strict) as stream:
        stream.read(5)
        first = _strike(strict, signal.SIGKILL)
        eventually(lambda: _replaced(strict, first), "another worker")
        _strike(strict, signal.SIGKILL)
        last = stream.rest()[-1]
    assert last.keys() == {"error", "code"}
    assert _replays(strict, "failed") == failed + 1


@pytest.mark.slow
def test_before_the_first_token_only(start: Start) -> None:
    running = start({"supervision": f"{IMPATIENT}replay: {{when: before_first_token}}\n"})
    with held(running) as stream:
        stream.read(5)
        _strike(running, signal.SIGKILL)
        assert stream.rest()[-1].keys() == {"error", "code"}
    assert _replays(running, "refused") == 1
    say(running, ENDLESS, "warm", tokens=1)
    body = body_for("/api/generate", ENDLESS, "whole", tokens=LONG)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(running.http.post, "/api/generate", json=body)
        eventually(lambda: running.health()["active_requests"], "the request runs")
        time.sleep(0.1)
        _strike(running, signal.SIGKILL)
        assert answer.result(60).status_code == 200, "the client has seen nothing of it"
    assert _replays(running, "completed") == 1


def test_a_request_that_a_worker_died_of_is_refused_and_no_other(strict: Daemon) -> None:
    """It was alone, and one worker is enough here."""
    with held(strict, prompt="poison") as stream:
        _strike(strict, signal.SIGSEGV)
        error = stream.rest()[-1]["error"]
    assert f"mlxd models reset {ENDLESS}" in error
    (listed,) = strict.health()["quarantined_requests"]
    assert listed["model"] == ENDLESS
    assert "client" not in listed
    (owners,) = strict.admin.get("/admin/health")["quarantined_requests"]
    assert (owners["model"], owners["client"]) == (ENDLESS, "127.0.0.1")
    assert "poison" not in json.dumps(strict.health())
    refused = strict.http.post("/api/generate", json=generate(ENDLESS, "poison", tokens=8192))
    assert refused.status_code == 503
    assert refused.headers["x-mlxd-code"] == "request_quarantined"
    assert refused.headers["x-should-retry"] == "false"
    assert refused.headers["x-mlxd-policy-key"] == "supervision.quarantine.for"
    assert say(strict, ENDLESS, "harmless", tokens=3)


def test_a_worker_that_somebody_killed_accuses_nobody(strict: Daemon) -> None:
    accused = len(strict.health()["quarantined_requests"])
    expected = say(strict, ENDLESS, "mine", tokens=ENOUGH)
    with held(strict, prompt="mine", tokens=ENOUGH) as stream:
        _strike(strict, signal.SIGKILL)
        stream.rest()
        assert stream.text == expected
    assert len(strict.health()["quarantined_requests"]) == accused
