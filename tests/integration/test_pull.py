"""Pulling, copying and deleting models over HTTP: a real daemon, a hub on loopback."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import ollama
import psutil
import pytest

from mlxd.core import manifest
from tests.support.daemon import Daemon, daemon, write_whole
from tests.support.hub import Hub, hub

pytestmark = pytest.mark.mlx

Json = dict[str, Any]
REPO = "mlx-community/Llama-3.2-3B-Instruct-4bit"
SHORT = "llama3.2:3b"
OTHER = "mlx-community/Another-4bit"
WEIGHTS = "model.safetensors"
POLICIES = {"limits": "concurrency: {max_in_flight: 8}\nrate_limit: []\n", "clients": ""}


def until(fact: Callable[[], object], within: float = 60.0) -> None:
    deadline = time.monotonic() + within
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def served() -> Iterator[Hub]:
    with hub() as running:
        yield running


@pytest.fixture
def remote(served: Hub, models: Path) -> Hub:
    """It has one small model, under the name of a well-known build, and no fault."""
    served.gate.set()
    served.waiting.clear()
    served.asked.clear()
    served.add(REPO, models / "tiny-a")
    return served


@pytest.fixture
def start(start_daemon: Callable[..., Daemon], remote: Hub) -> Callable[[], Daemon]:
    """Start daemons that pull from that hub."""
    return lambda: start_daemon(POLICIES, environment=remote.environment())


@pytest.fixture
def alone(start: Callable[[], Daemon]) -> Daemon:
    """A daemon that the test may end."""
    return start()


@pytest.fixture(scope="module")
def untouched(
    served: Hub, models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Daemon]:
    """One daemon for all whose tests leave it as it was."""
    folder = tmp_path_factory.mktemp("untouched")
    environment = served.environment()
    with daemon(folder, models=models, policies=POLICIES, environment=environment) as shared:
        yield shared


@pytest.fixture
def running(untouched: Daemon, remote: Hub) -> Iterator[Daemon]:
    """The same, whose pulled models and names are removed after the test; tiny-a may stay."""
    before = names(untouched)
    files = {file: file.read_text() for file in untouched.policies.iterdir()}
    yield untouched
    remote.gate.set()
    for file, text in files.items():
        write_whole(file, text)
    untouched.reload()
    for _ in range(2):  # a model after the names that lead to it
        for name in names(untouched) - before:
            untouched.http.request("DELETE", "/api/delete", json={"model": name})
    assert names(untouched) == before
    until(lambda: loaded(untouched) <= {"tiny-a"})


def pull(running: Daemon, name: str, **fields: object) -> list[Json]:
    response = running.http.post("/api/pull", json={"model": name, **fields})
    assert response.status_code == 200, response.text
    return [json.loads(line) for line in response.text.splitlines()]


def refused(running: Daemon, method: str, path: str, body: Json) -> tuple[int, str]:
    response = running.http.request(method, path, json=body)
    return response.status_code, response.json()["error"]


def names(running: Daemon) -> set[str]:
    return {model["name"] for model in running.http.get("/api/tags").json()["models"]}


def loaded(running: Daemon) -> set[str]:
    return {model["name"] for model in running.health()["cached_models"]}


def pullers(running: Daemon) -> list[psutil.Process]:
    """Its processes that pull."""
    found = []
    for child in psutil.Process(running.pid).children():
        try:
            if "mlxd.hub" in child.cmdline():
                found.append(child)
        except psutil.Error:
            continue
    return found


class Reader(threading.Thread):
    """A client in a thread of its own."""

    def __init__(self, running: Daemon, name: str) -> None:
        super().__init__(daemon=True)
        self.records: list[Json] = []
        self._url, self._name = f"{running.url}/api/pull", name
        self.start()

    def run(self) -> None:
        with httpx.stream("POST", self._url, json={"model": self._name}, timeout=60) as response:
            for line in response.iter_lines():
                self.records.append(json.loads(line))

    def statuses(self) -> list[str]:
        return [str(record.get("status")) for record in self.records]


class TestPull:
    def test_a_pulled_model_answers_at_once_by_each_of_its_names(self, running: Daemon) -> None:
        records = pull(running, f"library/{SHORT}")
        statuses = [record["status"] for record in records]
        assert statuses[0] == "pulling manifest"
        assert statuses[-3:] == ["verifying sha256 digest", "writing manifest", "success"]
        layers = {r["digest"]: r for r in records if "digest" in r}
        assert all(r["total"] == r.get("completed", 0) for r in layers.values())
        assert {r["status"] for r in layers.values()} == {
            f"pulling {digest.partition(':')[2][:12]}" for digest in layers
        }
        for name in (SHORT, REPO, "Llama-3.2-3B-Instruct-4bit", SHORT.upper(), f"library/{SHORT}"):
            answer = running.http.post(
                "/api/generate", json={"model": name, "prompt": "hi", "stream": False,
                                       "options": {"num_predict": 2}},
            )  # fmt: skip
            assert answer.json().get("done"), answer.text
        assert len(loaded(running) - {"tiny-a"}) == 1

    def test_one_object_when_no_stream_is_wanted_and_a_second_pull_fetches_nothing(
        self, running: Daemon, remote: Hub
    ) -> None:
        response = running.http.post("/api/pull", json={"name": REPO, "stream": False})
        assert response.headers["content-type"] == "application/json; charset=utf-8"
        assert response.json() == {"status": "success"}
        sent = remote.sent(WEIGHTS)
        assert pull(running, REPO)[-1] == {"status": "success"}
        assert remote.sent(WEIGHTS) == sent

    def test_all_who_want_one_model_share_one_download(self, running: Daemon, remote: Hub) -> None:
        remote.gate.clear()
        remote.waiting.clear()
        readers = [Reader(running, REPO)]  # the hub knows it by its own spelling only
        until(lambda: len(readers[0].records) > 1)
        readers += [Reader(running, name) for name in (SHORT, f"hf.co/{REPO.lower()}")]
        until(lambda: all(len(reader.records) > 1 for reader in readers))
        assert remote.waiting.wait(60), [reader.records for reader in readers]
        assert len(pullers(running)) == 1
        remote.gate.set()
        for reader in readers:
            reader.join(60)
            assert reader.statuses()[-1] == "success"
        assert remote.sent(WEIGHTS) == len(remote.repos[REPO].files[WEIGHTS])

    @pytest.mark.slow
    def test_who_hangs_up_does_not_stop_it_for_others_and_the_last_one_does(
        self, running: Daemon, remote: Hub
    ) -> None:
        remote.gate.clear()
        stays = Reader(running, REPO)
        until(lambda: pullers(running))
        with httpx.stream("POST", f"{running.url}/api/pull", json={"model": REPO}) as leaves:
            next(leaves.iter_lines())
        assert running.http.get("/livez").status_code == 200
        (process,) = pullers(running)
        remote.gate.set()
        stays.join(60)
        assert stays.statuses()[-1] == "success"
        assert running.http.request("DELETE", "/api/delete", json={"model": REPO}).is_success

        remote.gate.clear()
        remote.waiting.clear()
        with httpx.stream("POST", f"{running.url}/api/pull", json={"model": REPO}) as last:
            lines = last.iter_lines()  # closed when it is forgotten
            next(lines)
            assert remote.waiting.wait(60)
            (process,) = pullers(running)
        process.wait(20)
        remote.gate.set()
        assert pull(running, REPO)[-1] == {"status": "success"}

    def test_a_killed_process_is_an_error_and_the_next_pull_goes_on(
        self, running: Daemon, remote: Hub
    ) -> None:
        remote.gate.clear()
        reader = Reader(running, REPO)
        assert remote.waiting.wait(60)
        (process,) = pullers(running)
        process.kill()
        reader.join(60)
        assert "ended without a word" in reader.records[-1]["error"]
        remote.gate.set()
        assert pull(running, REPO)[-1] == {"status": "success"}

    @pytest.mark.slow
    def test_a_killed_daemon_takes_its_process_along_and_the_next_one_goes_on(
        self, alone: Daemon, start: Callable[[], Daemon], remote: Hub
    ) -> None:
        remote.gate.clear()
        reader = threading.Thread(target=lambda: _ignored(alone), daemon=True)
        reader.start()
        assert remote.waiting.wait(60)
        (process,) = pullers(alone)
        blobs = alone.state / "models" / ".partial" / REPO / "blobs"
        until(lambda: any(p.stat().st_size and "sha256" in p.name for p in blobs.iterdir()))
        alone.process.kill()
        alone.process.wait()
        psutil.wait_procs([process], 20)
        assert not process.is_running()
        remote.gate.set()
        second = start()
        (alone.state / "models").replace(second.state / "models")
        assert pull(second, REPO)[-1] == {"status": "success"}
        assert any(asked.startswith("bytes=") for asked in [
            *remote.ranges(WEIGHTS), *remote.ranges("tokenizer.json")
        ])  # fmt: skip

    def test_a_stopping_daemon_ends_it_and_says_so_and_keeps_what_is_whole(
        self, alone: Daemon, remote: Hub, models: Path
    ) -> None:
        pull(alone, SHORT)
        assert not (alone.state / "models" / ".partial").exists()
        remote.add(OTHER, models / "tiny-b")
        remote.gate.clear()
        remote.waiting.clear()
        reader = Reader(alone, OTHER)
        assert remote.waiting.wait(60)
        (process,) = pullers(alone)
        assert alone.stop() == 0
        assert not process.is_running()
        reader.join(60)
        assert "stopping" in reader.records[-1]["error"]
        written = manifest.read(alone.state / "models" / REPO)
        assert written is not None
        assert written.revision == remote.repos[REPO].commit
        assert not (alone.state / "models" / OTHER).exists()

    def test_corrupt_bytes_end_the_stream_with_an_error(self, running: Daemon, remote: Hub) -> None:
        repo = remote.repos[REPO]
        repo.served[WEIGHTS] = bytes(len(repo.files[WEIGHTS]))
        assert "not what the hub promised" in pull(running, REPO)[-1]["error"]
        assert REPO not in " ".join(names(running))
        status, words = refused(running, "POST", "/api/pull", {"model": REPO, "stream": False})
        assert (status, "not what the hub promised" in words) == (502, True)

    @pytest.mark.slow
    def test_the_daemon_follows_an_edit_of_the_hubs_address(
        self, start_daemon: Callable[..., Daemon], remote: Hub
    ) -> None:
        running = start_daemon(POLICIES, environment={"HF_ENDPOINT": "http://127.0.0.1:9"})
        dirs = json.dumps(str(running.state.parent / "none"))
        running.edit("models", f"dirs: [{dirs}]\npull: {{endpoint: '{remote.url}'}}\n")
        running.reload()
        assert pull(running, REPO)[-1] == {"status": "success"}


def _ignored(running: Daemon) -> None:
    with contextlib.suppress(httpx.TransportError):
        running.http.post("/api/pull", json={"model": REPO})


class TestRefusals:
    @pytest.mark.parametrize(
        ("body", "status", "words"),
        [
            ({}, 400, "model is required"),
            ({"model": ""}, 400, "model is required"),
            ({"model": "a/b/c"}, 400, "invalid model name"),
            ({"model": "../etc"}, 400, "invalid model name"),
            ({"model": "org/.."}, 400, "invalid model name"),
            ({"model": 3}, 400, "expected a string"),
            ({"model": "x", "stream": "yes"}, 400, "expected a boolean"),
            ({"model": "llama3.2:5b"}, 404, "did you mean llama3.2:1b, llama3.2:3b?"),
            ({"model": "lama3.2"}, 404, "did you mean llama3.2"),
            ({"model": "someone/model"}, 403, "models.pull.allow: [mlx-community/*]"),
            ({"model": "mlx-community/absent", "stream": False}, 404, "the hub has no"),
        ],
    )
    def test_a_pull_that_cannot_be_says_why(
        self, untouched: Daemon, body: Json, status: int, words: str
    ) -> None:
        found, said = refused(untouched, "POST", "/api/pull", body)
        assert found == status
        assert words in said

    def test_what_is_served_already_needs_no_pull(self, untouched: Daemon) -> None:
        """Scripts and Codex pull before they ask; no build is known by a name of the operator's."""
        records = pull(untouched, "mlxd-guide")
        assert [record["status"] for record in records] == ["pulling manifest", "success"]
        assert pull(untouched, "mlxd-guide", stream=False) == [{"status": "success"}]

    def test_through_a_proxy_nobody_manages_models(self, untouched: Daemon) -> None:
        for method, path in (
            ("POST", "/api/pull"), ("POST", "/api/copy"), ("POST", "/api/create"),
            ("DELETE", "/api/delete"),
        ):  # fmt: skip
            answer = untouched.http.request(
                method, path, json={}, headers={"X-Forwarded-For": "10.0.0.9"}
            )
            assert answer.status_code == 403
            assert answer.headers["X-Mlxd-Policy-Key"] == "clients.manage_models"

    def test_an_empty_list_pulls_none_never_is_never_and_any_is_anybody(
        self, running: Daemon
    ) -> None:
        before = (running.policies / "models.yaml").read_text().partition("\n")[2]
        running.edit("models", f"{before}pull: {{allow: []}}\n")
        running.edit("clients", "manage_models: never\n")
        running.reload()
        answer = running.http.post("/api/pull", json={"model": REPO})
        assert answer.status_code == 403
        assert answer.headers["X-Mlxd-Policy-Key"] == "clients.manage_models"
        running.edit("clients", "manage_models: any\n")
        running.reload()
        status, words = refused(running, "POST", "/api/pull", {"model": REPO})
        assert (status, "models.pull.allow: []" in words) == (403, True)
        running.edit("models", before)
        running.reload()
        answer = running.http.post(
            "/api/pull", json={"model": REPO}, headers={"X-Forwarded-For": "10.0.0.9"}
        )
        assert answer.status_code == 200


class TestCopies:
    def test_a_copy_is_another_name_for_the_same_model(self, running: Daemon) -> None:
        copied = running.http.post(
            "/api/copy", json={"source": "tiny-a", "destination": "my-model:v1"}
        )
        assert (copied.status_code, copied.content) == (200, b"")
        assert "my-model:v1" in names(running)
        for name in ("tiny-a", "my-model:v1"):
            running.http.post("/api/generate", json={"model": name})
        assert loaded(running) == {"tiny-a"}
        kept = json.loads((running.state / "models.d" / "my-model%3Av1.json").read_text())
        assert kept == {"schema": 1, "name": "my-model:v1", "model": "tiny-a", "made_by": "copy"}

    def test_its_library_is_implied_as_ollama_has_it(self, running: Daemon) -> None:
        body = {"source": "library/tiny-a", "destination": "held"}
        assert running.http.post("/api/copy", json=body).status_code == 200
        name = "registry.ollama.ai/library/held:latest"
        assert running.http.post("/api/show", json={"model": name}).status_code == 200
        deleted = running.http.request("DELETE", "/api/delete", json={"model": name})
        assert deleted.status_code == 200, deleted.text
        assert names(running) & {"held:latest", "tiny-a:latest"} == {"tiny-a:latest"}

    def test_what_is_in_memory_is_shown_by_a_name_that_leads_to_it(self, running: Daemon) -> None:
        def keep(name: str, time: int) -> None:
            running.http.post("/api/generate", json={"model": name, "keep_alive": time})

        keep("tiny-a", 0)
        running.http.post("/api/copy", json={"source": "tiny-a", "destination": "held"})
        keep("held", -1)
        assert "held" in loaded(running)
        running.http.request("DELETE", "/api/delete", json={"model": "held"})
        assert "held" not in loaded(running), "nobody could let it go by that"
        assert "tiny-a" in loaded(running)
        keep("tiny-a", 0)
        assert "tiny-a" not in loaded(running)
        running.http.post("/api/copy", json={"source": "tiny-a", "destination": "moved"})
        keep("moved", -1)
        running.http.post("/api/copy", json={"source": "tiny-b", "destination": "moved"})
        assert "moved" not in loaded(running), "that is another model's name now"
        assert "tiny-a" in loaded(running)

    def test_a_copy_of_a_copy_does_not_need_the_first_and_create_is_a_copy(
        self, running: Daemon
    ) -> None:
        for source, destination in (("tiny-a", "one"), ("one", "two")):
            running.http.post("/api/copy", json={"source": source, "destination": destination})
        assert running.http.request("DELETE", "/api/delete", json={"model": "one"}).is_success
        assert running.http.post("/api/show", json={"model": "two"}).status_code == 200
        assert running.http.post("/api/show", json={"model": "one"}).status_code == 404
        answer = running.http.post("/api/create", json={"model": "mine", "from": "tiny-a"})
        assert [json.loads(line)["status"] for line in answer.text.splitlines()][1:] == [
            "writing manifest", "success",
        ]  # fmt: skip
        assert "mine:latest" in names(running)

    @pytest.mark.parametrize(
        ("body", "status", "words"),
        [
            ({"source": "nobody", "destination": "x"}, 404, 'model "nobody" not found'),
            ({"source": "tiny-a"}, 400, "destination is required"),
            ({"source": "tiny-a", "destination": "../x"}, 400, 'destination "../x" is invalid'),
            ({"source": "tiny-a", "destination": "tiny-b"}, 400, "called so already"),
            ({"source": "tiny-a", "destination": "default"}, 400, "called so already"),
        ],
    )
    def test_a_copy_that_cannot_be_says_why(
        self, untouched: Daemon, body: Json, status: int, words: str
    ) -> None:
        found, said = refused(untouched, "POST", "/api/copy", body)
        assert found == status
        assert words in said

    def test_a_created_model_says_it_in_every_dialect(self, running: Daemon) -> None:
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        said = {
            "system": "Be kind.", "messages": turns, "license": "MIT",
            "parameters": {"temperature": 0, "num_predict": 5, "stop": ["zzzz"], "num_ctx": 512},
        }  # fmt: skip
        made = running.http.post("/api/create", json={"model": "kind", "from": "tiny-a"} | said)
        assert made.status_code == 200
        asked: list[Json] = [
            {"model": "tiny-a", "messages": [
                {"role": "system", "content": "Be kind."}, *turns, {"role": "user", "content": "x"}
            ], "options": {"temperature": 0, "num_predict": 5}},
            {"model": "kind", "messages": [{"role": "user", "content": "x"}]},
        ]  # fmt: skip
        by_hand, created = (
            running.http.post("/api/chat", json=body | {"stream": False}).json() for body in asked
        )
        assert by_hand["message"] == created["message"]
        assert by_hand["prompt_eval_count"] == created["prompt_eval_count"]
        other = running.http.post("/v1/chat/completions", json=asked[1]).json()
        assert other["choices"][0]["message"]["content"] == created["message"]["content"]
        assert loaded(running) == {"tiny-a"}
        shown = running.http.post("/api/show", json={"model": "kind", "verbose": True}).json()
        assert (shown["system"], shown["messages"], shown["license"]) == ("Be kind.", turns, "MIT")
        assert [line.split() for line in shown["parameters"].splitlines()] == [
            ["temperature", "0"], ["num_ctx", "512"], ["num_predict", "5"], ["stop", '"zzzz"'],
        ]  # fmt: skip
        assert "FROM tiny-a\n" in shown["modelfile"]
        assert 'SYSTEM """Be kind."""' in shown["modelfile"]
        assert shown["details"]["parent_model"] == "tiny-a"
        assert {"name", "type", "shape"} == set(shown["tensors"][0])

    def test_one_made_of_it_goes_on_when_it_is_gone(self, running: Daemon) -> None:
        for body in (
            {"model": "one", "from": "tiny-a", "system": "S", "parameters": {"top_k": 3}},
            {"model": "two", "from": "one", "parameters": {"top_p": 0.5}},
            {"model": "one", "from": "one", "system": "T"},
        ):
            assert running.http.post("/api/create", json=body).status_code == 200
        running.http.post("/api/copy", json={"source": "one", "destination": "three"})
        assert running.http.request("DELETE", "/api/delete", json={"model": "one"}).is_success
        two, three = (
            running.http.post("/api/show", json={"model": name}).json() for name in ("two", "three")
        )
        assert (two["system"], three["system"]) == ("S", "T")
        assert two["parameters"].split() == ["top_p", "0.5", "top_k", "3"]

    @pytest.mark.parametrize(
        ("body", "status", "words"),
        [
            ({"model": "x"}, 400, "neither 'from' or 'files' was specified"),
            ({"model": "x", "from": "nobody"}, 404, "model 'nobody' not found"),
            ({"model": "tiny-b", "from": "tiny-a"}, 400, "called so already"),
            ({"model": "../x", "from": "tiny-a"}, 400, 'model "../x" is invalid'),
            ({"model": "x", "from": "tiny-a", "adapters": {"a": "b"}}, 400, "models.yaml"),
            ({"model": "x", "from": "tiny-a", "system": "x" * 300_000}, 400, "262144 bytes"),
        ],
    )
    def test_one_that_cannot_be_says_why(
        self, untouched: Daemon, body: Json, status: int, words: str
    ) -> None:
        found, said = refused(untouched, "POST", "/api/create", body)
        assert found == status
        assert words in said


class TestUploads:
    """Files over /api/blobs, and models of them."""

    def upload(self, running: Daemon, folder: Path) -> dict[str, str]:
        files = {}
        for file in folder.iterdir():
            digest = f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
            url = f"/api/blobs/{digest}"
            if running.http.head(url).status_code == 404:
                pieces = (file.read_bytes()[at : at + 50_000] for at in range(0, 10**6, 50_000))
                assert running.http.post(url, content=pieces).status_code == 201
            assert running.http.head(url).status_code == 200
            assert running.http.post(url, content=b"").status_code == 200
            files[file.name] = digest
        return files

    def test_a_model_of_uploaded_files_is_served_shown_replaced_and_deleted(
        self, running: Daemon, models: Path
    ) -> None:
        body = {"model": "mine:v1", "files": self.upload(running, models / "tiny-a")}
        made = running.http.post("/api/create", json=body | {"system": "S"})
        lines = [json.loads(line)["status"] for line in made.text.splitlines()]
        assert lines[-2:] == ["writing manifest", "success"]
        assert len(lines) == len(body["files"]) + 2
        asked: Json = {"prompt": "x", "options": {"temperature": 0, "num_predict": 8}}
        asked |= {"stream": False}
        ours, theirs = (
            running.http.post("/api/generate", json=asked | more).json()["response"]
            for more in ({"model": "mine:v1"}, {"model": "tiny-a", "system": "S"})
        )
        assert ours == theirs
        shown = running.http.post("/api/show", json={"model": "mine:v1"}).json()
        assert (shown["source"], shown["system"]) == ("created", "S")
        running.http.post("/api/copy", json={"source": "mine:v1", "destination": "other"})
        status, words = refused(running, "DELETE", "/api/delete", {"model": "mine:v1"})
        assert (status, "other" in words) == (409, True)
        again = body | {"files": self.upload(running, models / "tiny-b"), "stream": False}
        assert running.http.post("/api/create", json=again).json() == {"status": "success"}
        now = running.http.post("/api/show", json={"model": "mine:v1"}).json()
        assert "system" not in now
        ours, theirs = (
            running.http.post("/api/generate", json=asked | {"model": name}).json()["response"]
            for name in ("mine:v1", "tiny-b")
        )
        assert ours == theirs, "the files that it was made of before are not in memory any more"
        running.http.post("/api/generate", json={"model": "tiny-b", "keep_alive": 0})
        for name in ("other", "mine:v1"):
            assert running.http.request("DELETE", "/api/delete", json={"model": name}).is_success
        assert not (running.state / "created" / "mine:v1").exists()
        assert refused(running, "POST", "/api/show", {"model": "mine:v1"})[0] == 404

    @pytest.mark.parametrize(
        ("body", "words"),
        [
            ({"model": "x", "files": {"a.json": f"sha256:{'0' * 64}"}}, "not found"),
            ({"model": "tiny-a", "files": {"a.json": f"sha256:{'0' * 64}"}}, "called so already"),
            ({"model": "a/b/c", "files": {"a.json": f"sha256:{'0' * 64}"}}, "ORGANISATION/NAME"),
        ],
    )
    def test_one_that_cannot_be_says_why(self, untouched: Daemon, body: Json, words: str) -> None:
        status, said = refused(untouched, "POST", "/api/create", body)
        assert (status, words in said) == (400, True)

    def test_bytes_that_are_not_the_digests_are_refused(self, untouched: Daemon) -> None:
        url = f"/api/blobs/sha256:{'0' * 64}"
        answer = untouched.http.post(url, content=b"x")
        assert (answer.status_code, "digest mismatch" in answer.text) == (400, True)
        assert untouched.http.head(url).status_code == 404
        for bad in ("sha256:x", "..%2F..%2Fetc", f"sha256:{'g' * 64}"):
            assert untouched.http.post(f"/api/blobs/{bad}", content=b"x").status_code == 400

    def test_a_proxys_clients_may_not(self, untouched: Daemon) -> None:
        for method in ("HEAD", "POST"):
            url, headers = f"/api/blobs/sha256:{'0' * 64}", {"Via": "1.1 x"}
            assert untouched.http.request(method, url, headers=headers).status_code == 403


class TestAccounts:
    def test_there_is_none(self, untouched: Daemon) -> None:
        for method, path in (
            ("POST", "/api/me"), ("POST", "/api/signout"), ("DELETE", "/api/user/keys/abc"),
        ):  # fmt: skip
            answer = untouched.http.request(method, path)
            assert (answer.status_code, answer.json()["signin_url"]) == (401, "")
        status = untouched.http.get("/api/status").json()
        assert status == {"cloud": {"disabled": True, "source": "none"}}

    def test_nothing_is_pushed(self, untouched: Daemon) -> None:
        assert refused(untouched, "POST", "/api/push", {"model": "nobody"})[0] == 404
        status, words = refused(untouched, "POST", "/api/push", {"model": "tiny-a"})
        assert (status, words) == (400, "tiny-a is not pushed: mlxd sends no model to anybody")


class TestDelete:
    def test_a_pulled_model_is_kept_for_its_copies_then_goes_with_files_and_names_and_answers_on(
        self, running: Daemon
    ) -> None:
        pull(running, SHORT)
        running.http.post("/api/copy", json={"source": REPO, "destination": "mine"})
        status, words = refused(running, "DELETE", "/api/delete", {"model": REPO})
        assert (status, "mine" in words) == (409, True)
        assert running.http.request("DELETE", "/api/delete", json={"model": "mine"}).is_success
        body = {"model": SHORT, "prompt": "hi", "options": {"num_predict": 200}}
        with running.http.stream("POST", "/api/generate", json=body) as stream:
            lines = stream.iter_lines()
            next(lines)
            with httpx.Client(base_url=running.url, timeout=20) as other:
                deleted = other.request("DELETE", "/api/delete", json={"model": SHORT})
            assert (deleted.status_code, deleted.content) == (200, b"")
            assert not (running.state / "models" / "mlx-community").exists()
            last = json.loads([*lines][-1])
        assert last["done"]
        assert "error" not in last
        assert running.http.post("/api/show", json={"model": SHORT}).status_code == 404
        assert running.http.post("/api/show", json={"model": REPO}).status_code == 404
        until(lambda: loaded(running) <= {"tiny-a"})

    @pytest.mark.slow
    def test_of_several_names_that_it_was_pulled_by_the_last_takes_it_along(
        self, running: Daemon
    ) -> None:
        pull(running, SHORT)
        pull(running, "llama3.2")
        assert running.http.request("DELETE", "/api/delete", json={"model": SHORT}).is_success
        assert (running.state / "models" / REPO).exists()
        assert running.http.request("DELETE", "/api/delete", json={"model": "llama3.2"}).is_success
        assert not (running.state / "models" / REPO).exists()

    def test_what_was_not_pulled_is_not_deleted(self, untouched: Daemon, models: Path) -> None:
        for name in ("tiny-a", "mlxd-guide"):
            status, words = refused(untouched, "DELETE", "/api/delete", {"model": name})
            assert (status, "was not pulled" in words) == (403, True)
        assert (models / "tiny-a" / "config.json").exists()
        assert refused(untouched, "DELETE", "/api/delete", {"model": "nobody"}) == (
            404, "model 'nobody' not found",
        )  # fmt: skip
        assert refused(untouched, "DELETE", "/api/delete", {"name": ""})[0] == 400

    def test_a_model_that_is_being_pulled_anew_is_not_deleted(
        self, running: Daemon, remote: Hub
    ) -> None:
        pull(running, REPO)
        files = remote.repos[REPO].files
        files["tokenizer.json"] = files["tokenizer.json"] + b"\n"
        remote.gate.clear()
        remote.waiting.clear()
        reader = Reader(running, REPO)
        until(lambda: pullers(running))
        assert refused(running, "DELETE", "/api/delete", {"model": REPO})[0] == 409
        remote.gate.set()
        reader.join(60)
        assert reader.statuses()[-1] == "success"


ClientOf = Callable[[Daemon], ollama.Client]


class TestOllamasClient:
    @pytest.fixture
    def client_of(self) -> Iterator[ClientOf]:
        with contextlib.ExitStack() as stack:

            def made(running: Daemon) -> ollama.Client:
                client = ollama.Client(host=running.url)
                stack.callback(client._client.close)
                return client

            yield made

    def test_it_creates(self, running: Daemon, client_of: ClientOf, models: Path) -> None:
        client = client_of(running)
        parameters = ollama.Options(temperature=0, num_predict=3)
        made = client.create("kind", from_="tiny-a", system="S", parameters=parameters)
        assert made.status == "success"
        assert client.generate("kind", "x").eval_count == 3
        files = {file.name: client.create_blob(file) for file in (models / "tiny-a").iterdir()}
        progress = [*client.create("mine", files=files, license="MIT", stream=True)]
        assert progress[-1].status == "success"
        assert client.show("mine").license == "MIT"
        with pytest.raises(ollama.ResponseError, match="mlxd sends no model"):
            client.push("mine")

    def test_it_pulls_copies_and_deletes(self, running: Daemon, client_of: ClientOf) -> None:
        client = client_of(running)
        progress = [*client.pull(SHORT, stream=True)]
        assert progress[-1].status == "success"
        assert any(one.completed == one.total for one in progress if one.digest)
        assert client.copy(SHORT, "mine").status == "success"
        assert {"mine:latest"} <= {str(model.model) for model in client.list().models}
        assert client.generate("mine", "hi", options={"num_predict": 2}).done
        assert client.delete("mine").status == "success"
        assert client.delete(SHORT).status == "success"
        with pytest.raises(ollama.ResponseError, match="not found"):
            client.show(SHORT)

    def test_it_raises_what_the_stream_says(self, untouched: Daemon, client_of: ClientOf) -> None:
        client = client_of(untouched)
        with pytest.raises(ollama.ResponseError, match="the hub has no"):
            list(client.pull("mlx-community/absent", stream=True))
        with pytest.raises(ollama.ResponseError, match="may not be pulled"):
            client.pull("someone/else")
