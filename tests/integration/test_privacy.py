"""What clients say, and what they are answered, is nowhere but in the answers: neither in logs,
events, metrics and crash records, nor in the state folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.conftest import IMPATIENT
from tests.integration.talking import ENDLESS, eventually, held, idle, workers_of
from tests.support import command
from tests.support.canaries import Canaries, files_of
from tests.support.daemon import Daemon, daemon, write_policies

pytestmark = pytest.mark.mlx

Json = dict[str, Any]
ANSWER = "天地玄黃"
"""Of what the reciter says."""
QUOTING = "{{ ({})[messages[-1].content].part }}"
"""A chat template whose errors quote."""
HOOK = "http://127.0.0.1:9/services/{}"
MODELS = ("blobs", "created", "models")
"""Folders of the state folder with weights: nobody's secret."""
ADMIN = (
    "/admin/policy", "/admin/policy/effective", "/admin/policy/explain", "/admin/policy/history",
    "/admin/usage", "/admin/models", "/admin/ps", "/admin/requests", "/admin/cache",
    "/admin/events", "/admin/health",
)  # fmt: skip
OPEN = (
    "/health",
    "/metrics",
    "/api/events?since=0",
    "/queue/stats",
    "/",
    "/api/ps",
    "/api/tags",
    "/api/chat/status",
)
COMMANDS = (
    ("status",), ("explain",), ("crashes",), ("crashes", "--json"), ("policy", "explain", "server"),
    ("policy", "explain", "supervision.events.webhook.url"), ("policy", "history"),
    ("policy", "diff", "defaults", "disk"), ("events",), ("events", "--json"), ("keys", "list"),
    ("cache", "stats"), ("models", "list"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Lived:
    """A daemon's life that is over."""

    folder: Path
    canaries: Canaries
    said: dict[str, str]
    """What it told while it lived, by who asked."""
    answers: list[str]

    @property
    def state(self) -> Path:
        return self.folder / "state"


@pytest.fixture(scope="module")
def lived(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Lived:
    folder = tmp_path_factory.mktemp("private")
    canaries = Canaries()
    (folder / "quoting.jinja").write_text(QUOTING)
    policies = policies_of(folder, zoo, canaries)
    write_policies(folder / "policies", policies)
    places = ("--policies", folder / "policies", "--state", folder / "state")
    canaries.words["key"] = command.mlxd("keys", "add", "agents", *places).stdout.strip()
    with daemon(folder, models=zoo, policies=policies) as running:
        running.http.headers["Authorization"] = f"Bearer {canaries['key']}"
        life = Life(running, canaries)
        life.live(folder, policies)
        said = told_by(running, places)
    canaries.words["answer"] = ANSWER
    return Lived(folder, canaries, said, life.answers)


def policies_of(folder: Path, zoo: Path, canaries: Canaries) -> dict[str, str]:
    canaries.words["hook"] = "T0-canary-of-the-hook"
    hook = f"events: {{webhook: {{url: '{HOOK.format(canaries['hook'])}', timeout: 1s}}}}\n"
    return {
        "clients": "auth: {required: true, guesses: {max: 3, penalty: 1s}}\n",
        "limits": "concurrency: {max_in_flight: 2, max_waiting: 0}\nrate_limit: []\n",
        "supervision": f"{IMPATIENT}quarantine: {{kills: 1}}\n{hook}",
        "models": (
            f"dirs: [{zoo}]\nmodels:\n"
            f"  tiny-b: {{chat_template: {folder / 'quoting.jinja'}}}\n"
            f"  {ENDLESS}: {{aliases: ['any-*']}}\n"
        ),
        "memory": "prefix_cache: {memory: 64MiB, disk: 64MiB}\n",
    }


class Life:
    """Asks what clients ask, well and badly."""

    def __init__(self, running: Daemon, canaries: Canaries) -> None:
        self.running = running
        self.canaries = canaries
        self.answers: list[str] = []

    def live(self, folder: Path, policies: dict[str, str]) -> None:
        self.converse()
        self.err()
        self.upload()
        self.be_refused()
        self.crash()
        hook = HOOK.format(f"{self.canaries['hook']}-2")
        before = policies["supervision"]
        self.running.edit("supervision", before.replace(HOOK.format(self.canaries["hook"]), hook))
        self.running.reload()

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        said = {"Content-Type": "application/json"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        answer = self.running.http.post(path, content=content, headers=said)
        self.answers.append(f"{path} {answer.status_code} {answer.text}")
        return answer

    def converse(self) -> None:
        for model in ("tiny-reciter", "tiny-a"):
            for stream in (False, True):
                for path, body in self.bodies(model):
                    asked = body | {"stream": stream}
                    if model == "tiny-reciter":
                        asked.pop("tools", None)
                    answer = self.post(path, asked, **self.headers())
                    assert answer.status_code in {200, 400}, answer.text

    def headers(self) -> dict[str, str]:
        names = {"X_Anything": "header", "User_Agent": "agent", "Cookie": "cookie"}
        return {name: self.canaries[kind] for name, kind in names.items()}

    def bodies(self, model: str) -> list[tuple[str, Json]]:
        say = self.canaries
        call = {
            "id": say["id"], "type": "function",
            "function": {"name": "look", "arguments": json.dumps({"where": say["arguments"]})},
        }  # fmt: skip
        messages: list[Json] = [
            {"role": "system", "content": say["system"]},
            {"role": "user", "content": say["prompt"]},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": say["id"], "content": say["earlier"]},
            {"role": "user", "content": say["prompt"]},
        ]
        about = {"description": say["tool"], "parameters": {"type": "object"}}
        tools = [{"type": "function", "function": {"name": "look"} | about}]
        said = [{"role": "user", "content": say["prompt"]}]
        return [
            (
                "/v1/chat/completions",
                {"model": model, "messages": messages, "tools": tools, "max_tokens": 60,
                 "stop": [say["stop"]], "user": "team"},
            ),
            (
                "/v1/messages",
                {"model": model, "messages": said, "system": say["system"], "max_tokens": 9},
            ),
            (
                "/v1/responses",
                {"model": model, "input": say["prompt"], "instructions": say["system"],
                 "max_output_tokens": 16, "metadata": {"mark": say["mark"]}},
            ),
            (
                "/api/generate",
                {"model": model, "prompt": say["prompt"], "system": say["system"],
                 "options": {"num_predict": 5}},
            ),
        ]  # fmt: skip

    def err(self) -> None:
        """What each dialect refuses, with what it refuses in it."""
        say = self.canaries
        chat = {"model": "tiny-a", "messages": [{"role": "user", "content": say["prompt"]}]}
        ask = {"model": "tiny-a", "prompt": say["prompt"]}
        schema = {"type": say["schema"], "pattern": f"({say['schema']}"}
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        template = f"{{{{ raise_exception('{say['template']}' + .Prompt) }}}}"
        wrong: list[tuple[str, Any]] = [
            ("/v1/chat/completions", b'{"model": "tiny-a", "messages": [' + say["broken"].encode()),
            ("/v1/chat/completions", chat | {"model": say["model"]}),
            ("/v1/chat/completions", chat | {"model": f"any-{say['model']}", "max_tokens": 1}),
            ("/v1/chat/completions", chat | {"temperature": say["broken"]}),
            ("/v1/chat/completions", chat | {say["broken"]: 1, "n": say["broken"]}),
            ("/v1/chat/completions", chat | {"response_format": form}),
            ("/v1/chat/completions", chat | {"tool_choice": {"type": say["tool"]}}),
            ("/v1/chat/completions", chat | {"model": "tiny-b"}),
            ("/v1/messages", {**chat, "model": say["model"], "max_tokens": 1}),
            ("/v1/messages", {**chat, "max_tokens": say["broken"]}),
            ("/v1/responses", {"model": "tiny-a", "input": [{"type": say["broken"]}]}),
            ("/v1/responses", {**ask, "input": "x", "previous_response_id": say["id"]}),
            ("/v1/embeddings", {"model": say["model"], "input": say["prompt"]}),
            ("/v1/messages/count_tokens", {**chat, "system": say["system"]}),
            ("/api/generate", ask | {"template": template, "raw": False}),
            ("/api/generate", ask | {"format": schema}),
            ("/api/generate", ask | {"suffix": say["suffix"]}),
            ("/api/generate", ask | {"images": [say["picture"]]}),
            ("/api/generate", ask | {"keep_alive": say["broken"]}),
            ("/api/generate", {"model": say["model"], "keep_alive": 0}),
            ("/api/chat", {"model": "tiny-a", "messages": [{"role": say["broken"]}]}),
            ("/api/show", {"model": say["model"]}),
            ("/api/push", {"model": say["model"]}),
            ("/api/copy", {"source": say["model"], "destination": "other"}),
            ("/api/copy", {"source": "tiny-a", "destination": f"../{say['model']}"}),
            ("/api/create", {"model": "other", "from": say["model"], "system": say["system"]}),
            ("/api/pull", {"model": say["model"]}),
            ("/api/embed", {"model": "tiny-a", "input": {"x": say["prompt"]}}),
        ]
        for path, body in wrong:
            self.post(path, body)
        self.running.http.request("DELETE", "/api/delete", json={"model": say["model"]})
        self.post("/api/generate", ask, X_Request_Priority=say["priority"])
        self.post("/api/generate", ask, Last_Event_ID=say["id"])
        for path in ("/v1/models/", "/v1/responses/", "/api/models/", "/api/blobs/sha256:"):
            self.running.http.get(path + say["path"])
            self.running.http.delete(path + say["path"])
        self.running.http.delete(f"/api/user/keys/{say['path']}")

    def upload(self) -> None:
        content = b"{}"
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        self.running.http.post(f"/api/blobs/{digest}", content=content)
        files = {f"{self.canaries['file']}.safetensors": digest, "config.json": digest}
        assert self.post("/api/create", {"model": "made", "files": files}).status_code >= 400

    def be_refused(self) -> None:
        """At the walls, for want of a slot, for a key that is none."""
        say = self.canaries
        self.post("/api/chat", {}, Origin=f"https://{say['origin']}.example")
        self.post("/api/chat", {}, Host=f"{say['host']}.example")
        for _ in range(6):
            self.post("/api/chat", {}, Authorization=f"Bearer {say['wrong-key']}")
        eventually(lambda: self.running.http.get("/api/tags").status_code == 200, "it may ask")
        body = {"model": ENDLESS, "prompt": say["prompt"], "stream": False}
        with held(self.running, body=body | {"stream": True}), held(self.running, prompt="other"):
            for _ in range(30):
                assert self.post("/api/generate", body, **self.headers()).status_code == 503

    def crash(self) -> None:
        """Each worker's death is held against what ran on it: then it is quarantined."""
        ask = {"model": ENDLESS, "prompt": self.canaries["prompt"], "stream": True}
        idle(self.running)
        with held(self.running, body=ask) as stream:
            os.kill(workers_of(self.running)[ENDLESS], signal.SIGKILL)
            eventually(lambda: "replay" in self.running.log_text(), "it is replayed")
        idle(self.running)
        with held(self.running, body=ask) as stream:
            os.kill(workers_of(self.running)[ENDLESS], signal.SIGABRT)
            self.answers.append(json.dumps(stream.rest()))
        answer = self.post("/api/generate", {**ask, "prompt": self.canaries["prompt"]})
        assert "quarantine" in answer.text


def told_by(running: Daemon, places: tuple[object, ...]) -> dict[str, str]:
    """All that it tells whoever may ask, and its owner."""
    json_wanted = {"Accept": "application/json"}
    said = {path: running.http.get(path, headers=json_wanted).text for path in OPEN}
    said |= {path: json.dumps(running.admin.get(path)) for path in ADMIN}
    for model in workers_of(running):
        told = running.admin.get("/admin/models/stderr", name=model)
        said[f"stderr of {model}"] = json.dumps(told)
    for request in running.admin.get("/admin/requests", n="500")["requests"]:
        said[f"explain {request['id']}"] = json.dumps(request)
    for words in COMMANDS:
        done = command.mlxd(*words, *places)
        said[" ".join(words)] = done.stdout + done.stderr
    return said


def test_it_did_hear_and_say_all_that(lived: Lived) -> None:
    """Or the others would test nothing."""
    told = "\n".join(lived.answers)
    assert ANSWER in told
    missing = [
        kind for kind in ("model", "broken", "host", "priority") if lived.canaries[kind] not in told
    ]
    assert not missing
    assert "503" in told
    assert '"worker_down"' in lived.said["/admin/events"]
    assert '"reject"' in lived.said["/admin/events"]


def test_nothing_of_it_is_told_to_anybody_else(lived: Lived) -> None:
    assert lived.canaries.told_by(lived.said) == []


def test_nothing_of_it_is_logged(lived: Lived) -> None:
    log = (lived.folder / "daemon.log").read_text()
    assert "worker_down" in log
    assert lived.canaries.told_by({"the log": log}) == []


def test_nothing_of_it_is_in_the_state_folder(lived: Lived) -> None:
    """But for the policy files that are kept whole, in which the webhook is."""
    kept = lived.canaries.kept_in(lived.state)
    assert [one for one in kept if not one.startswith("lkg/") or not one.endswith(": hook")] == []


def test_what_is_there_is_its_owners_alone(lived: Lived) -> None:
    assert stat.S_IMODE(lived.state.stat().st_mode) == 0o700
    open_to_others = {
        str(file.relative_to(lived.state)): oct(stat.S_IMODE(file.stat().st_mode))
        for file in files_of(lived.state)
        if file.stat().st_mode & 0o077 and file.relative_to(lived.state).parts[0] not in MODELS
    }
    assert open_to_others == {}
