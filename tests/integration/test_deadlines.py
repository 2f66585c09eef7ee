"""Time limits on a request: what is said when one passes, before and inside a stream."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import NO_LIMITS
from tests.integration.talking import (
    ENDLESS,
    PATHS,
    body_for,
    events,
    eventually,
    generate,
    idle,
    ndjson,
    unload,
)
from tests.support.daemon import Daemon, daemon

pytestmark = pytest.mark.mlx

TIMEOUTS = "generation: 500ms\nfirst_byte: 300ms\n"
LINE = "timeouts.yaml:2"
MUCH = 8192


@pytest.fixture(scope="module")
def hurried(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with little time for a generation and for a first byte."""
    folder = tmp_path_factory.mktemp("hurried")
    policies = {"limits": NO_LIMITS, "timeouts": TIMEOUTS}
    with daemon(folder, models=zoo, policies=policies) as running:
        running.http.post("/api/generate", json={"model": ENDLESS})
        yield running


@pytest.mark.parametrize("path", PATHS)
def test_a_whole_answer_that_takes_too_long_is_504(hurried: Daemon, path: str) -> None:
    answer = hurried.http.post(path, json=body_for(path, ENDLESS, "long", tokens=MUCH))
    assert answer.status_code == 504
    assert answer.headers["x-mlxd-code"] == "deadline_exceeded"
    assert answer.headers["x-mlxd-policy-key"] == "timeouts.generation"
    assert LINE in answer.text
    idle(hurried, within=4.0)


def test_an_ollama_stream_that_takes_too_long_ends_with_an_error_and_no_reason(
    hurried: Daemon,
) -> None:
    *texts, last = ndjson(
        hurried.http.post("/api/generate", json=generate(ENDLESS, "long", tokens=MUCH))
    )
    assert len(texts) > 3
    assert last.keys() == {"error"}
    assert "timeouts.generation" in last["error"]
    assert LINE in last["error"]
    assert not any(record["done"] for record in texts)
    idle(hurried, within=4.0)


@pytest.mark.parametrize("path", PATHS[2:])
def test_an_openai_stream_that_takes_too_long_ends_with_an_error_and_no_reason(
    hurried: Daemon, path: str
) -> None:
    body = body_for(path, ENDLESS, "long", tokens=MUCH) | {"stream": True}
    *texts, last = events(hurried.http.post(path, json=body))
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
    assert hurried.http.post("/api/generate", json=body).json()["eval_count"] == 3
    assert [worker.pid for worker in hurried.workers()] == pids


@pytest.mark.parametrize("path", PATHS[2:])
def test_an_event_stream_is_kept_awake_with_comments_while_its_model_loads(
    hurried: Daemon, path: str
) -> None:
    unload(hurried, "tiny-b")
    body = body_for(path, "tiny-b", "cold", tokens=2) | {"stream": True}
    with hurried.http.stream("POST", path, json=body) as response:
        assert response.status_code == 200
        assert hurried.health()["loading_models"] == ["tiny-b"], "the status line waited"
        blocks = response.read().decode().split("\n\n")
    assert blocks[0].startswith(":")
    assert blocks[-2] == "data: [DONE]"


def test_a_record_stream_gets_its_status_line_early_and_nothing_else(hurried: Daemon) -> None:
    unload(hurried, "tiny-b")
    body = generate("tiny-b", "cold", tokens=2)
    with hurried.http.stream("POST", "/api/generate", json=body) as response:
        assert response.status_code == 200
        assert hurried.health()["loading_models"] == ["tiny-b"], "the status line waited"
        response.read()
    assert ndjson(response)[-1]["done"] is True


def test_a_load_is_not_cut_short_by_the_time_for_a_generation(hurried: Daemon) -> None:
    unload(hurried, "tiny-b")
    body = body_for("/api/generate", "tiny-b", "cold", tokens=2)
    answer = hurried.http.post("/api/generate", json=body)
    assert answer.status_code == 200
    assert answer.json()["load_duration"] > 500_000_000


def test_a_model_that_takes_too_long_to_load_is_503(start: object) -> None:
    running: Daemon = start({"timeouts": "model_load: 200ms\n"})  # type: ignore[operator]
    body = generate("tiny-a", "cold", tokens=2)
    answer = running.http.post("/api/generate", json=body)
    assert answer.status_code == 503
    assert answer.headers["x-mlxd-code"] == "model_load_failed"
    assert int(answer.headers["retry-after"]) >= 1
    eventually(lambda: not running.workers(), "its worker is gone")


def test_no_first_token_in_time_is_504(start: object) -> None:
    running: Daemon = start({"timeouts": "first_token: 1ms\n"})  # type: ignore[operator]
    prompt = "много слов " * 1500
    body = generate(ENDLESS, prompt, tokens=2)
    answer = running.http.post("/api/generate", json=body)
    assert answer.status_code == 504
    assert "timeouts.first_token" in answer.text
