"""What Ollama's command line sends, in the form that its Go client has, and what it needs back.

Its options are null and its texts empty where nothing was said; a duration is a string, or -1; the
body of a stream of bytes comes in chunks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.daemon import Daemon

pytestmark = pytest.mark.mlx

Json = dict[str, Any]
AGENT = "ollama/0.12.6 (arm64 darwin) Go/go1.24.1"


class Cli:
    """The client of one command."""

    def __init__(self, daemon: Daemon) -> None:
        headers = {"User-Agent": AGENT, "Accept-Encoding": "gzip"}
        self._http = httpx.Client(base_url=daemon.url, headers=headers, timeout=60)
        self._http.headers.pop("Connection")

    def close(self) -> None:
        self._http.close()

    def probe(self) -> None:
        """Before each command."""
        answer = self._http.head("/", headers=self._json())
        assert (answer.status_code, answer.content) == (200, b"")

    def ask(self, method: str, path: str, body: Json | None = None) -> httpx.Response:
        content = None if body is None else json.dumps(body).encode()
        return self._http.request(method, path, content=content, headers=self._json())

    def stream(self, path: str, body: Json) -> list[Json]:
        """Each line as Go's scanner has it: 8 MB at most, none of them empty, no `error`."""
        headers = {"Content-Type": "application/json", "Accept": "application/x-ndjson"}
        answer = self._http.post(path, content=json.dumps(body).encode(), headers=headers)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("application/x-ndjson")
        lines = answer.content.removesuffix(b"\n").split(b"\n")
        assert all(0 < len(line) < 8 * 10**6 for line in lines)
        records = [json.loads(line) for line in lines]
        assert not any("error" in record for record in records)
        return records

    def upload(self, content: bytes) -> str:
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        answer = self._http.head(f"/api/blobs/{digest}", headers=self._json())
        if answer.status_code == 404:
            pieces = (content[at : at + 32768] for at in range(0, len(content), 32768))
            headers = self._json() | {"Content-Type": "application/octet-stream"}
            assert self._http.post(
                f"/api/blobs/{digest}", content=pieces, headers=headers
            ).status_code == 201  # fmt: skip
        return digest

    def _json(self) -> dict[str, str]:
        return {"Content-Type": "application/json", "Accept": "application/json"}


@pytest.fixture
def cli(shared_daemon: Daemon) -> Iterator[Cli]:
    client = Cli(shared_daemon)
    client.probe()
    yield client
    client.close()


def show(name: str) -> Json:
    """api.ShowRequest."""
    return {
        "model": name,
        "system": "",
        "template": "",
        "verbose": False,
        "options": None,
        "name": "",
    }


def load(name: str, **more: Any) -> Json:
    """api.GenerateRequest with nothing to say."""
    body = {"model": name, "prompt": "", "suffix": "", "system": "", "template": "", "options": {}}
    return body | more


def chat(name: str, *messages: Json, **more: Any) -> Json:
    """api.ChatRequest."""
    return {"model": name, "messages": list(messages), "format": "", "options": {}} | more


def test_run_asks_loads_and_talks(cli: Cli) -> None:
    shown = cli.ask("POST", "/api/show", show("tiny-a")).json()
    assert "completion" in shown["capabilities"]
    assert {"details", "model_info", "modified_at", "parameters", "template"} <= shown.keys()
    loaded = cli.ask("POST", "/api/generate", load("tiny-a", keep_alive="5m0s")).json()
    assert (loaded["done"], loaded["done_reason"]) == (True, "load")
    turns = [{"role": "user", "content": "Why is the sky blue?"}]
    options = {"num_predict": 12, "temperature": 0.0}
    records = cli.stream("/api/chat", chat("tiny-a", *turns, options=options))
    text = "".join(record["message"]["content"] for record in records)
    assert text
    assert all(record["message"]["role"] == "assistant" for record in records)
    last = records[-1]
    for field in ("total", "load", "prompt_eval", "eval"):
        assert last[f"{field}_duration"] > 0
    turns += [{"role": "assistant", "content": text}, {"role": "user", "content": "More."}]
    again = cli.stream("/api/chat", chat("tiny-a", *turns, options=options, keep_alive=-1))
    assert again[-1]["prompt_eval_count"] > last["prompt_eval_count"]
    cli.ask("POST", "/api/generate", load("tiny-a", keep_alive="5m0s"))


def test_run_with_a_prompt_in_a_pipe_keeps_its_context(cli: Cli) -> None:
    body = load("tiny-a") | {"prompt": "Hi", "options": {"num_predict": 4}, "format": ""}
    first = cli.stream("/api/generate", body)[-1]
    assert all(type(token) is int for token in first["context"])
    second = cli.stream("/api/generate", body | {"context": first["context"]})[-1]
    assert len(second["context"]) > len(first["context"])


def test_ps_and_stop(cli: Cli) -> None:
    cli.ask("POST", "/api/generate", load("tiny-b"))
    running = cli.ask("GET", "/api/ps").json()["models"]
    (entry,) = [model for model in running if model["name"] == "tiny-b:latest"]
    assert entry["size"] == entry["size_vram"] > 0
    assert entry["digest"][:12]
    stopped = cli.ask("POST", "/api/generate", load("tiny-b", keep_alive="0s")).json()
    assert stopped["done_reason"] == "unload"
    names = [model["name"] for model in cli.ask("GET", "/api/ps").json()["models"]]
    assert "tiny-b:latest" not in names
    missing = cli.ask("POST", "/api/generate", load("nobody", keep_alive="0s"))
    assert (missing.status_code, missing.json()) == (404, {"error": "model 'nobody' not found"})


def test_list_cp_create_and_rm(cli: Cli) -> None:
    listed = cli.ask("GET", "/api/tags").json()["models"]
    assert {"name", "model", "modified_at", "size", "digest", "details"} <= listed[0].keys()
    copied = cli.ask("POST", "/api/copy", {"source": "tiny-a", "destination": "cp:of-cli"})
    assert (copied.status_code, copied.content) == (200, b"")
    made = cli.stream(
        "/api/create",
        {
            "model": "made:of-cli",
            "from": "tiny-a",
            "system": "Be brief.",
            "parameters": {"stop": ["\n\n"], "temperature": 0.5},
            "messages": [{"role": "user", "content": "hi"}],
            "name": "",
        },
    )
    assert made[-1] == {"status": "success"}
    for name in ("cp:of-cli", "made:of-cli"):
        shown = cli.ask("POST", "/api/show", show(name))
        assert shown.status_code == 200
        stop = cli.ask("POST", "/api/generate", load(name, keep_alive="0s"))
        assert stop.status_code == 200, "rm stops a model before it removes it"
        gone = cli.ask("DELETE", "/api/delete", {"model": name, "name": name})
        assert (gone.status_code, gone.content) == (200, b"")
    gone = cli.ask("DELETE", "/api/delete", {"model": "made:of-cli", "name": ""})
    assert (gone.status_code, gone.json()) == (404, {"error": "model 'made:of-cli' not found"})


@pytest.mark.slow
def test_create_of_a_folder(cli: Cli, models: Path) -> None:
    files = {f.name: cli.upload(f.read_bytes()) for f in (models / "tiny-a").iterdir()}
    made = cli.stream("/api/create", {"model": "folder", "files": files, "template": ""})
    assert made[-1] == {"status": "success"}
    loaded = cli.ask("POST", "/api/generate", load("folder")).json()
    assert loaded["done_reason"] == "load"
    assert cli.ask("DELETE", "/api/delete", {"model": "folder", "name": ""}).status_code == 200


def test_pull_push_and_signin_say_what_cannot_be(cli: Cli) -> None:
    asked = {"model": "no-such-model", "insecure": False, "username": "", "password": ""}
    for path in ("/api/pull", "/api/push"):
        answer = cli.ask("POST", path, asked)
        assert (answer.status_code, answer.json().keys()) == (404, {"error"})
    answer = cli.ask("POST", "/api/me")
    assert (answer.status_code, answer.json().keys()) == (401, {"error", "signin_url"})


@pytest.mark.parametrize("path", ["/", "/api/version", "/api/tags"])
def test_what_is_probed_by_head(cli: Cli, path: str) -> None:
    head, get = cli.ask("HEAD", path), cli.ask("GET", path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
