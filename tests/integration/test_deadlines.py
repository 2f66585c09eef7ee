"""Time limits on a request: what is said when one passes, before and inside a stream."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import pytest

from mlxd.control.generation import Limits
from mlxd.control.order import Order
from mlxd.control.worker import Worker
from mlxd.core.clock import SystemClock
from mlxd.core.errors import DeadlineExceeded, PolicyLine
from mlxd.core.events import collect
from mlxd.core.models import ModelSpec
from mlxd.core.request import GenerationRequest, Sampling
from tests.integration.conftest import NO_LIMITS, Lend
from tests.integration.reciter import make_dying
from tests.integration.talking import (
    ENDLESS,
    IN_TURN,
    PATHS,
    Json,
    body_for,
    data_of,
    events,
    eventually,
    generate,
    gone,
    idle,
    ndjson,
    say,
    unload,
    workers_of,
)
from tests.support.daemon import Daemon, daemon
from tests.support.model_maker import Shape, make_model

pytestmark = pytest.mark.mlx

TIMEOUTS = "generation: 500ms\nfirst_byte: 300ms\nworker_cancel_ack: 10s\n"
LINE = "timeouts.yaml:2"
MUCH = 8192
LATE = "tiny-late"
GENERATION = 2.5
"""Seconds for one of LATE's."""


@pytest.fixture(scope="module")
def hurried(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with little time for a generation and for a first byte."""
    folder = tmp_path_factory.mktemp("hurried")
    policies = {"limits": NO_LIMITS, "timeouts": TIMEOUTS}
    with daemon(folder, models=zoo, policies=policies) as running:
        running.http.post("/api/generate", json={"model": ENDLESS})
        yield running


def cut(hurried: Daemon, path: str, body: Json) -> httpx.Response:
    """A stream that its time limit ends; asked for anew where something held its beginning up."""

    def asked() -> httpx.Response | None:
        response = hurried.http.post(path, json=body)
        return response if len(response.text.splitlines()) > 20 else None

    response = eventually(asked, "a stream has begun when its time is over")
    assert response is not None
    return response


@pytest.mark.parametrize("path", IN_TURN)
def test_a_whole_answer_that_takes_too_long_is_504(hurried: Daemon, path: str) -> None:
    answer = hurried.http.post(path, json=body_for(path, ENDLESS, "long", tokens=MUCH))
    assert answer.status_code == 504
    assert answer.headers["x-mlxd-code"] == "deadline_exceeded"
    assert answer.headers["x-mlxd-policy-key"] == "timeouts.generation"
    assert answer.headers["x-should-retry"] == "false", "it would take all that time again"
    assert LINE in answer.text
    idle(hurried, within=4.0)


def test_an_ollama_stream_that_takes_too_long_ends_with_an_error_and_no_reason(
    hurried: Daemon,
) -> None:
    body = generate(ENDLESS, "long", tokens=MUCH)
    *texts, last = ndjson(cut(hurried, "/api/generate", body))
    assert len(texts) > 3
    assert last.keys() == {"error", "code"}
    assert "timeouts.generation" in last["error"]
    assert LINE in last["error"]
    assert not any(record["done"] for record in texts)
    idle(hurried, within=4.0)


@pytest.mark.parametrize("path", PATHS[2:])
def test_an_openai_stream_that_takes_too_long_ends_with_an_error_and_no_reason(
    hurried: Daemon, path: str
) -> None:
    body = body_for(path, ENDLESS, "long", tokens=MUCH) | {"stream": True}
    *texts, last = events(cut(hurried, path, body))
    if last == "[DONE]":
        last = texts.pop()
    error = json.loads(last)["error"]
    assert error["code"] == "deadline_exceeded"
    assert {"message", "type", "param", "code"} <= error.keys()
    reasons = [json.loads(text)["choices"][0]["finish_reason"] for text in texts]
    assert len(texts) > 3
    assert set(reasons) == {None}
    idle(hurried, within=4.0)


def test_the_next_request_after_a_deadline_is_served_by_the_same_worker(hurried: Daemon) -> None:
    pids = [worker.pid for worker in hurried.workers()]
    body = body_for("/api/generate", ENDLESS, "short", tokens=3)

    def served() -> int:
        """How many tokens; none, where something held it up for the time it has."""
        answer: Json = hurried.http.post("/api/generate", json=body).json()
        return int(answer.get("eval_count", 0))

    assert eventually(served, "it is served") == 3
    assert [worker.pid for worker in hurried.workers()] == pids


@dataclass(frozen=True)
class Late:
    """A daemon with LATE, which loads until there is a file `gate`."""

    daemon: Daemon
    gate: Path


@pytest.fixture
def late(lend: Lend, zoo: Path, tmp_path: Path) -> Iterator[Late]:
    folder, gate = tmp_path / "late", tmp_path / "gate"
    wait = f"while not os.path.exists({str(gate)!r}): __import__('time').sleep(0.01)"
    make_dying(folder / LATE, gate, end=wait)
    models = f"dirs: [{zoo}, {folder}]\nmodels: {{{LATE}: {{trust_remote_code: true}}}}\n"
    timeouts = f"generation: {GENERATION}s\nfirst_byte: 300ms\n"
    running = lend({"models": models, "timeouts": timeouts})
    yield Late(running, gate)
    gate.touch()
    unload(running, LATE)


@pytest.mark.parametrize("path", IN_TURN[2:])
def test_an_event_stream_is_kept_awake_with_comments_while_its_model_loads(
    late: Late, path: str
) -> None:
    body = body_for(path, LATE, "cold", tokens=2) | {"stream": True}
    with late.daemon.http.stream("POST", path, json=body) as response:
        assert response.status_code == 200
        assert late.daemon.health()["loading_models"] == [LATE]
        late.gate.touch()
        text = response.read().decode()
    assert text.startswith(":")
    assert data_of(text)[-1] == "[DONE]"


def test_a_record_stream_gets_its_status_line_early_and_nothing_else(late: Late) -> None:
    body = generate(LATE, "cold", tokens=2)
    with late.daemon.http.stream("POST", "/api/generate", json=body) as response:
        assert response.status_code == 200
        assert late.daemon.health()["loading_models"] == [LATE]
        late.gate.touch()
        response.read()
    assert ndjson(response)[-1]["done"] is True


def test_a_load_is_not_cut_short_by_the_time_for_a_generation(late: Late) -> None:
    body = body_for("/api/generate", LATE, "cold", tokens=2)
    with ThreadPoolExecutor(1) as one:
        asked = one.submit(late.daemon.http.post, "/api/generate", json=body)
        eventually(lambda: late.daemon.health()["loading_models"] == [LATE], "it loads")
        time.sleep(GENERATION)  # it loads for longer
        late.gate.touch()
    answer = asked.result()
    assert answer.status_code == 200
    assert answer.json()["load_duration"] > GENERATION * 1e9


def test_a_model_that_takes_too_long_to_load_is_503(start: object) -> None:
    running: Daemon = start({"timeouts": "model_load: 200ms\n"})  # type: ignore[operator]
    body = generate("tiny-a", "cold", tokens=2)
    answer = running.http.post("/api/generate", json=body)
    assert answer.status_code == 503
    assert answer.headers["x-mlxd-code"] == "model_load_failed"
    assert int(answer.headers["retry-after"]) >= 1
    eventually(lambda: not running.workers(), "its worker is gone")


def test_no_first_token_in_time_is_504(lend: Lend) -> None:
    running = lend({"timeouts": "first_token: 1ms\n"})
    prompt = "много слов " * 1500
    body = generate(ENDLESS, prompt, tokens=2)
    answer = running.http.post("/api/generate", json=body)
    assert answer.status_code == 504
    assert "timeouts.first_token" in answer.text


FIRST = "first_token: 1ms\nfirst_byte: 100ms\n"
STALL = "first_token: 4s\ninter_token_stall: 700ms\nworker_cancel_ack: 500ms\n"
NO_REPLAY = "replay: {when: off}\n"
LONG_PROMPT = "много слов " * 1500


def _error_of(path: str, response: httpx.Response) -> str:
    """What a refusal says, or the last record of a stream that has begun."""
    if response.status_code != 200:
        return response.text
    if path.startswith("/api/"):
        return str(ndjson(response)[-1]["error"])
    (*_, last) = [data for data in events(response) if data != "[DONE]"]
    return str(json.loads(last)["error"]["message"])


@pytest.fixture(scope="module")
def eager(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that gives no time for a first token."""
    folder = tmp_path_factory.mktemp("eager")
    policies = {"limits": NO_LIMITS, "timeouts": FIRST}
    with daemon(folder, models=zoo, policies=policies) as running:
        running.http.post("/api/generate", json={"model": ENDLESS})
        yield running


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("path", IN_TURN)
@pytest.mark.slow
def test_a_first_token_that_is_late_is_said_in_every_dialect(
    eager: Daemon, path: str, stream: bool
) -> None:
    body = body_for(path, ENDLESS, LONG_PROMPT, tokens=2) | {"stream": stream}
    response = eager.http.post(path, json=body)
    if not stream:
        assert response.status_code == 504
        assert response.headers["x-mlxd-policy-key"] == "timeouts.first_token"
    said = _error_of(path, response)
    assert "timeouts.first_token" in said
    assert "timeouts.yaml:2" in said
    idle(eager, within=4.0)


@pytest.mark.parametrize("path", IN_TURN)
def test_a_load_that_is_late_is_the_last_record_of_a_stream_that_has_begun(
    eager: Daemon, path: str
) -> None:
    eager.edit("timeouts", FIRST + "model_load: 250ms\n")
    eager.reload()
    body = body_for(path, "tiny-b", "cold", tokens=2) | {"stream": True}
    response = eager.http.post(path, json=body)
    assert response.status_code == 200
    said = _error_of(path, response)
    assert "timeouts.model_load" in said
    assert "timeouts.yaml:4" in said
    idle(eager, within=4.0)
    eventually(lambda: "tiny-b" not in workers_of(eager), "its worker is gone")


@pytest.mark.slow
def test_a_stall_is_said_in_a_stream_and_in_a_whole_answer(start: object) -> None:
    running: Daemon = start({"timeouts": STALL, "supervision": NO_REPLAY})  # type: ignore[operator]
    for path, stream in (("/v1/chat/completions", True), ("/api/chat", False)):
        say(running, ENDLESS, "warm", tokens=1)
        worker = workers_of(running)[ENDLESS]
        body = body_for(path, ENDLESS, "stall", tokens=MUCH) | {"stream": stream}
        with ThreadPoolExecutor(1) as one:
            answer = one.submit(running.http.post, path, json=body)
            eventually(lambda: running.health()["active_requests"] == 1, "it runs")
            time.sleep(0.1)  # until it decodes
            os.kill(worker, signal.SIGSTOP)
        said = _error_of(path, answer.result())
        assert "timeouts.inter_token_stall" in said
        assert "timeouts.yaml:3" in said
        idle(running, within=4.0)
        eventually(partial(gone, worker), "the worker is killed")


@pytest.mark.parametrize(
    ("limits", "key"),
    [
        ({"generation": 0.3}, "timeouts.generation"),
        ({"first_token": 0.25, "prompt": 40_000}, "timeouts.first_token"),
        ({}, ""),
    ],
    ids=["total", "first token", "consumer leaves"],
)
async def test_what_has_ended_for_its_client_is_nothing_that_the_engine_runs(
    zoo: Path, tmp_path: Path, limits: Json, key: str
) -> None:
    folder = zoo / ENDLESS
    if "prompt" in limits:  # one layer reads any prompt in no time: nothing is computed of its last
        folder = make_model(tmp_path / "two-layers", Shape(layers=2, context=65536))
    worker = await Worker.spawn(
        ModelSpec(str(folder), 65536), "m", SystemClock(), temporary=tmp_path / "private"
    )
    await worker.until_ready()
    bursts = worker.generate(_order(**limits))
    if key:
        with pytest.raises(DeadlineExceeded) as late:
            await collect(bursts)
        assert late.value.policy == PolicyLine(key, "x", "y")
    else:
        await anext(bursts)
        await anext(bursts)
        await bursts.aclose()
    pong = await worker.ping(20)
    assert pong is not None
    assert pong.running == 0
    await worker.stop(5)


def _order(*, generation: float = 60.0, first_token: float = 60.0, prompt: int = 3) -> Order:
    limits = Limits(generation, first_token, 60, 20, lambda key: PolicyLine(key, "x", "y"))
    request = GenerationRequest(model="m", token_ids=(9,) * prompt, max_tokens=60_000)
    return Order(request, Sampling(temperature=0.0), 65536, 60_000, 65536, limits, 0.0)
