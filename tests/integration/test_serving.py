"""Text through each endpoint: streamed and whole, in the shape its clients expect."""

from __future__ import annotations

import json

import pytest

from tests.integration.talking import (
    ENDLESS,
    PATHS,
    Json,
    body_for,
    cached,
    chunks,
    eventually,
    ndjson,
    piece_of,
    records,
    unload,
    whole_text,
)
from tests.support.daemon import Daemon

pytestmark = pytest.mark.mlx

DURATIONS = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")
SAMPLINGS = {"greedy": {"temperature": 0}, "seeded": {"temperature": 1.0, "seed": 11}}


def _streamed(daemon: Daemon, path: str, body: Json) -> list[Json]:
    response = daemon.http.post(path, json=body | {"stream": True})
    assert response.status_code == 200, response.text
    return records(path, response)


@pytest.mark.parametrize("sampling", list(SAMPLINGS.values()), ids=list(SAMPLINGS))
@pytest.mark.parametrize("path", PATHS)
def test_the_streamed_text_is_the_whole_text(served: Daemon, path: str, sampling: Json) -> None:
    body = body_for(path, ENDLESS, "tell me", tokens=40, **sampling)
    answer = served.http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    whole = whole_text(path, answer.json())
    pieces = [piece_of(path, record) for record in _streamed(served, path, body)]
    assert len(whole) > 40
    assert "".join(pieces) == whole
    assert sum(map(bool, pieces)) >= 20, "the text came in a few lumps"


def test_two_seeds_give_two_texts(served: Daemon) -> None:
    texts = set()
    for seed in (1, 2):
        body = body_for("/api/chat", ENDLESS, "hi", tokens=20, temperature=1.0, seed=seed)
        texts.add(served.http.post("/api/chat", json=body).json()["message"]["content"])
    assert len(texts) == 2


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
def test_an_ollama_stream_ends_with_counts_and_durations(served: Daemon, path: str) -> None:
    body = body_for(path, ENDLESS, "count", tokens=12)
    *texts, last = ndjson(served.http.post(path, json=body | {"stream": True}))
    assert all(record["done"] is False for record in texts)
    assert all(record["model"] == ENDLESS for record in [*texts, last])
    assert all(record["created_at"].endswith("Z") for record in [*texts, last])
    assert last["done"] is True
    assert last["done_reason"] == "length"
    assert last["eval_count"] == 12
    assert last["prompt_eval_count"] > 5
    assert all(isinstance(last[name], int) and last[name] > 0 for name in DURATIONS)
    assert last["total_duration"] >= last["eval_duration"]


def test_durations_are_those_of_the_work(served: Daemon) -> None:
    few, many = (
        served.http.post(
            "/api/generate", json=body_for("/api/generate", ENDLESS, "time", tokens=tokens)
        ).json()
        for tokens in (4, 120)
    )
    assert many["eval_duration"] > 3 * few["eval_duration"]
    assert many["total_duration"] < 60e9


def test_every_record_of_an_ollama_chat_has_role_and_content(served: Daemon) -> None:
    body = body_for("/api/chat", ENDLESS, "hi", tokens=5)
    found = ndjson(served.http.post("/api/chat", json=body | {"stream": True}))
    assert all(record["message"]["role"] == "assistant" for record in found)
    assert all(isinstance(record["message"]["content"], str) for record in found)


def test_an_openai_chat_stream_has_a_role_a_finish_reason_and_usage_when_asked(
    served: Daemon,
) -> None:
    path = "/v1/chat/completions"
    body = body_for(path, ENDLESS, "hi", tokens=6) | {"stream": True}
    plain = chunks(served.http.post(path, json=body))
    assert plain[0]["choices"][0]["delta"]["role"] == "assistant"
    assert [chunk["choices"][0]["finish_reason"] for chunk in plain[:-1]] == [None] * (
        len(plain) - 1
    )
    assert plain[-1]["choices"][0]["finish_reason"] == "length"
    assert not any("usage" in chunk for chunk in plain)
    with_usage = body | {"stream_options": {"include_usage": True}}
    counted = chunks(served.http.post(path, json=with_usage))
    assert counted[-1]["choices"] == []
    assert counted[-1]["usage"]["completion_tokens"] == 6
    assert counted[-1]["usage"]["prompt_tokens"] > 5


def test_an_openai_stream_takes_empty_stream_options(served: Daemon) -> None:
    body = body_for("/v1/chat/completions", ENDLESS, "hi", tokens=3)
    body |= {"stream": True, "stream_options": {}}
    assert chunks(served.http.post("/v1/chat/completions", json=body))


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_whole_openai_answer_has_an_id_and_usage(served: Daemon, path: str) -> None:
    answer = served.http.post(path, json=body_for(path, ENDLESS, "hi", tokens=7)).json()
    usage = answer["usage"]
    assert answer["id"]
    assert answer["model"] == ENDLESS
    assert answer["choices"][0]["finish_reason"] == "length"
    assert usage["completion_tokens"] == 7
    assert usage["total_tokens"] == usage["prompt_tokens"] + 7


def test_a_model_that_ends_its_answer_finishes_with_stop(served: Daemon) -> None:
    body = body_for("/api/chat", "tiny-reciter", "say it", tokens=100)
    assert served.http.post("/api/chat", json=body).json()["done_reason"] == "stop"
    path = "/v1/chat/completions"
    body = body_for(path, "tiny-reciter", "say it", tokens=100)
    assert served.http.post(path, json=body).json()["choices"][0]["finish_reason"] == "stop"


def test_curl_without_a_json_header_is_read_as_json(served: Daemon) -> None:
    body = json.dumps(body_for("/api/generate", ENDLESS, "hi", tokens=3))
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert served.http.post("/api/generate", content=body, headers=form).json()["response"]


def test_old_top_level_fields_of_generate_are_taken(served: Daemon) -> None:
    body = {"model": ENDLESS, "prompt": "hi", "max_tokens": 3, "temperature": 0, "stream": False}
    answer = served.http.post("/api/generate", json=body).json()
    assert answer["eval_count"] == 3
    assert answer["done_reason"] == "length"


def test_a_category_stands_for_its_chain(served: Daemon) -> None:
    body: Json = {"prompt": "hi", "max_tokens": 3, "stream": False, "category": "coding"}
    assert served.http.post("/api/generate", json=body).status_code == 200
    assert served.http.post("/api/generate", json=body | {"category": "fast"}).status_code == 404


def test_an_empty_prompt_loads_and_keep_alive_zero_unloads(served: Daemon) -> None:
    unload(served, "tiny-b")
    loaded = served.http.post("/api/generate", json={"model": "tiny-b"})
    assert loaded.headers["content-type"].startswith("application/json")
    assert loaded.json()["done_reason"] == "load"
    assert "tiny-b" in cached(served)
    gone = served.http.post("/api/chat", json={"model": "tiny-b", "messages": [], "keep_alive": 0})
    assert gone.json()["done_reason"] == "unload"
    assert gone.json()["message"] == {"role": "assistant", "content": ""}
    eventually(lambda: "tiny-b" not in cached(served), "tiny-b is unloaded")


def test_unloading_what_is_not_loaded_is_answered(served: Daemon) -> None:
    unload(served, "tiny-b")
    answer = served.http.post("/api/generate", json={"model": "tiny-b", "keep_alive": "0s"})
    assert (answer.status_code, answer.json()["done_reason"]) == (200, "unload")


@pytest.mark.parametrize(
    ("keep_alive", "seconds"),
    [(60, 60), (90.5, 90.5), ("1h30m", 5400), ("1500ms", 1.5), (-1, 1e8), ("-1m", 1e8)],
)
def test_keep_alive_sets_when_a_model_expires(
    served: Daemon, keep_alive: object, seconds: float
) -> None:
    from datetime import datetime

    served.http.post("/api/generate", json={"model": ENDLESS, "keep_alive": keep_alive})
    (entry,) = [
        model
        for model in served.http.get("/api/ps").json()["models"]
        if model["name"] == f"{ENDLESS}:latest"
    ]
    served.http.post("/api/generate", json={"model": ENDLESS, "keep_alive": 300})
    expires = datetime.fromisoformat(entry["expires_at"])
    left = (expires - datetime.now(expires.tzinfo)).total_seconds()
    if seconds >= 1e8:
        assert left > 1e8
    else:
        assert seconds - 5 < left <= seconds


@pytest.mark.parametrize("keep_alive", ["5", "soon", [], {}, True, ""])
def test_a_keep_alive_that_means_nothing_is_refused(served: Daemon, keep_alive: object) -> None:
    body = {"model": ENDLESS, "keep_alive": keep_alive}
    assert served.http.post("/api/generate", json=body).status_code == 400


def test_keep_alive_zero_with_a_prompt_answers_and_unloads(served: Daemon) -> None:
    body = body_for("/api/generate", "tiny-b", "bye", tokens=3) | {"keep_alive": 0}
    answer = served.http.post("/api/generate", json=body)
    assert answer.json().get("eval_count") == 3, answer.text
    eventually(lambda: "tiny-b" not in cached(served), "tiny-b is unloaded")
