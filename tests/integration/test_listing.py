"""What can be asked about models and versions, and what every answer carries."""

from __future__ import annotations

import re

import httpx
import pytest

from mlxd import __version__
from tests.integration.talking import ENDLESS, PATHS, Json, body_for
from tests.support.daemon import Daemon

pytestmark = pytest.mark.mlx

GUIDE = "mlxd-guide"


@pytest.mark.parametrize("path", ["/", "/api/version", "/api/tags", "/health", "/livez", "/readyz"])
def test_head_is_answered_like_get_without_a_body(served: Daemon, path: str) -> None:
    head, get = served.http.head(path), served.http.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]


def test_the_root_says_that_ollama_is_running(served: Daemon) -> None:
    answer = served.http.get("/")
    assert "Ollama is running" in answer.text
    assert answer.json()["message"] == "Ollama is running"


def test_the_version_is_one_of_ollamas_that_clients_talk_to(served: Daemon) -> None:
    """Codex asks for 0.13.4, VS Code for 0.6.4; apps for up to 0.35.0."""
    told = served.http.get("/api/version").json()
    assert told["mlxd"] == __version__
    assert tuple(map(int, told["version"].split("."))) >= (0, 35, 0)


def test_tags_lists_every_model_with_its_details_and_the_guide_last(served: Daemon) -> None:
    tags = served.http.get("/api/tags").json()["models"]
    names = [tag["name"] for tag in tags]
    assert names[-1] == f"{GUIDE}:latest"
    wanted = {"tiny-a", "tiny-b", ENDLESS, "tiny-short", "tiny-reciter"}
    assert {f"{name}:latest" for name in wanted} < set(names)
    for tag in tags[:-1]:
        assert re.fullmatch("[0-9a-f]{64}", tag["digest"])
        assert tag["size"] > 100_000
        assert tag["model"] == tag["name"]
        details = tag["details"]
        for key in ("format", "family", "parameter_size", "quantization_level"):
            assert details[key], key
        assert details["format"] == "safetensors"
        assert details["family"] == "llama"
    times = [tag["modified_at"] for tag in tags[:-1]]
    assert times == sorted(times, reverse=True)


def test_ps_shows_what_is_loaded(served: Daemon) -> None:
    served.http.post("/api/generate", json={"model": ENDLESS})
    entries = served.http.get("/api/ps").json()["models"]
    (entry,) = [model for model in entries if model["name"] == f"{ENDLESS}:latest"]
    assert entry["size_vram"] == entry["size"] > 0
    assert entry["context_length"] == 65536
    assert {"digest", "details", "expires_at"} <= entry.keys()


@pytest.mark.parametrize("key", ["model", "name"])
def test_show_tells_what_the_files_say(served: Daemon, key: str) -> None:
    shown = served.http.post("/api/show", json={key: "tiny-a"}).json()
    info = shown["model_info"]
    assert info["general.architecture"] == "llama"
    assert info["general.parameter_count"] > 50_000
    assert info["llama.context_length"] == 4096
    assert info["llama.block_count"] == 2
    assert "completion" in shown["capabilities"]
    assert "<|im_start|>" in shown["template"]
    assert shown["details"]["parameter_size"]


def test_show_without_a_model_is_refused_and_an_unknown_one_is_not_found(served: Daemon) -> None:
    assert served.http.post("/api/show", json={}).status_code == 400
    unknown = served.http.post("/api/show", json={"model": "nobody"})
    assert unknown.status_code == 404
    assert unknown.json()["error"].startswith("model 'nobody' not found")


def test_one_model_is_told_with_the_name_of_its_folder_only(served: Daemon) -> None:
    served.http.post("/api/generate", json={"model": ENDLESS})
    model = served.http.get(f"/api/models/{ENDLESS}").json()
    assert model["name"] == ENDLESS
    assert model["path"] == ENDLESS
    assert (model["exists"], model["loaded"]) == (True, True)
    assert model["context_length"] == 65536
    assert "/" not in model["path"]
    assert served.http.get("/api/models/bee").json()["alias_of"] == "tiny-b"
    assert served.http.get("/api/models/nobody").status_code == 404


def test_openai_lists_models_and_tells_of_one(served: Daemon) -> None:
    listed = served.http.get("/v1/models").json()
    assert listed["object"] == "list"
    ids = [model["id"] for model in listed["data"]]
    assert {"tiny-a", ENDLESS} <= set(ids)
    one = served.http.get("/v1/models/tiny-a").json()
    assert (one["id"], one["object"]) == ("tiny-a", "model")
    missing = served.http.get("/v1/models/nobody")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("name", ["tiny-a", "TINY-A", "tiny-a:latest", "Tiny-a:local", " tiny-a "])
def test_a_name_is_taken_however_it_is_spelt(served: Daemon, name: str) -> None:
    body = body_for("/api/generate", name, "hi", tokens=2)
    answer = served.http.post("/api/generate", json=body)
    assert (answer.status_code, answer.json().get("model")) == (200, name)


@pytest.mark.parametrize("path", PATHS)
def test_an_unknown_model_is_404_with_the_nearest_names(served: Daemon, path: str) -> None:
    answer = served.http.post(path, json=body_for(path, "tiny-recite", "hi", tokens=2))
    assert answer.status_code == 404
    message = answer.json()["error"]
    if path.startswith("/v1"):
        assert message["code"] == "model_not_found"
        message = message["message"]
    assert message.startswith("model 'tiny-recite' not found")
    assert "tiny-reciter" in message


def test_an_unknown_path_is_404_and_a_wrong_method_405(served: Daemon) -> None:
    nowhere = served.http.get("/api/nowhere")
    assert (nowhere.status_code, nowhere.text) == (404, "404 page not found")
    assert nowhere.headers["content-type"].startswith("text/plain")
    wrong = served.http.get("/api/chat")
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "POST"
    assert wrong.headers["content-type"].startswith("text/plain")
    openai = served.http.get("/v1/nowhere")
    assert openai.status_code == 404
    assert set(openai.json()["error"]) >= {"message", "type", "param", "code"}


def _answers(served: Daemon, headers: dict[str, str]) -> dict[str, httpx.Response]:
    path = "/v1/chat/completions"
    body: Json = body_for(path, ENDLESS, "hi", tokens=2)

    def post(to: str, body: Json) -> httpx.Response:
        return served.http.post(to, json=body, headers=headers)

    return {
        "health": served.http.get("/health", headers=headers),
        "whole": post(path, body),
        "stream": post(path, body | {"stream": True}),
        "ndjson": post("/api/generate", body_for("/api/generate", ENDLESS, "x", tokens=2)),
        "unknown path": served.http.get("/nowhere", headers=headers),
        "wrong method": served.http.get("/api/chat", headers=headers),
        "unknown model": post("/api/generate", {"model": "nobody", "prompt": "x"}),
        "bad field": post("/api/chat", {"model": ENDLESS, "messages": 5}),
        "bad json": served.http.post("/api/chat", content=b"{", headers=headers),
        "foreign host": served.http.get("/", headers=headers | {"Host": "evil.example"}),
        "preflight": served.http.options("/api/chat", headers=headers),
    }


def test_every_answer_carries_the_callers_request_id(served: Daemon) -> None:
    for what, answer in _answers(served, {"X-Request-Id": "abc-1"}).items():
        assert answer.headers.get("x-request-id") == "abc-1", what
        assert answer.headers.get("request-id") == "abc-1", what


@pytest.mark.parametrize("given", [{}, {"X-Request-Id": "x" * 129}])
def test_every_answer_carries_an_id_of_its_own_without_a_usable_one(
    served: Daemon, given: dict[str, str]
) -> None:
    ids = [answer.headers.get("x-request-id") for answer in _answers(served, given).values()]
    assert all(id and id != "x" * 129 for id in ids)
    assert len(set(ids)) == len(ids)


def test_a_request_id_is_in_the_log(served: Daemon) -> None:
    served.http.get("/api/version", headers={"X-Request-Id": "find-me-in-the-log"})
    assert "find-me-in-the-log" in served.log_text()


def test_a_request_that_is_not_http_gets_an_id_too_and_no_internals(served: Daemon) -> None:
    from tests.integration.talking import raw

    answer = raw(served, b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\nBad Header: x\r\n\r\n")
    head = answer.partition(b"\r\n\r\n")[0].lower()
    assert answer.split()[1] == b"400"
    assert b"aiohttp" not in answer.lower()
    assert b"\r\nx-request-id: " in head
