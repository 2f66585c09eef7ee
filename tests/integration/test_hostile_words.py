"""Addresses and paths on a client's word: nothing is fetched, and nothing outside is touched."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.integration.talking import body_for
from tests.support.daemon import Daemon, daemon

pytestmark = pytest.mark.mlx

Json = dict[str, Any]
MODEL = "tiny-a"
SPY = """\
import os, sys

def spy(event, arguments):
    if event == "socket.connect" and not isinstance(arguments[1], (str, bytes)):
        note(f"connect {arguments[1]!r}")
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        note(f"look up {arguments[0]!r}")

def note(words):
    file = os.open(os.environ["SPIED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, (words + "\\n").encode())
    os.close(file)

sys.addaudithook(spy)
"""
"""What every process of a daemon begins with: whom it speaks to is written down."""
ELSEWHERE = (
    "{url}", "{url}/a/b", "{host}/a/b", "{host}/a/b:latest", "//{host}/a", "evil.example/a/b",
    "https://evil.example/a/b", "file:///etc/passwd", "file://{host}/x", "ftp://{host}/x",
    "hf.co/../../x", "https://huggingface.co@{host}/a", "registry.ollama.ai/library/x",
    "../../etc/passwd", "/etc/passwd", "~/x", "a/b/../../c", "a/..", "..", ".", "a\0b/c", "a\nb/c",
    "\u202egpj/x", "a\\\\b/c", "a/b?revision=x", "a/b#x", "a%2fb/c", "x" * 10_000, "x/" * 5_000,
    "a//b", "-rf/x",
)  # fmt: skip
PATHS_ONLY = tuple(
    one for one in ELSEWHERE if not any(word in one for word in ("{", "example", "registry"))
)


class Spied:
    """A daemon whose connections are written down, and a port that nobody should come to."""

    def __init__(self, served: Daemon, notes: Path, door: socket.socket) -> None:
        self.served = served
        self._notes = notes
        self._door = door
        self.host = f"127.0.0.1:{door.getsockname()[1]}"

    def named(self, pattern: str) -> str:
        return pattern.replace("{url}", f"http://{self.host}").replace("{host}", self.host)

    def went(self) -> list[str]:
        """Whom it spoke to, itself left out, and who came."""
        own = {f"connect ('127.0.0.1', {self.served.port})", "look up '127.0.0.1'"}
        notes = self._notes.read_text().splitlines() if self._notes.exists() else []
        found = [line for line in notes if line not in own]
        try:
            self._door.accept()[0].close()
        except BlockingIOError:
            return found
        return [*found, "somebody came"]


@pytest.fixture(scope="module")
def spied(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spied]:
    folder = tmp_path_factory.mktemp("spied")
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(SPY)
    notes = folder / "notes"
    paths = f"{folder / 'site'}:{Path(__file__).parents[2]}"
    environment = {"PYTHONPATH": paths, "SPIED": str(notes)}
    limits = {"limits": "concurrency: {max_in_flight: 8}\nrate_limit: []\n"}
    with socket.create_server(("127.0.0.1", 0)) as door:
        door.setblocking(False)
        with daemon(folder, models=models, policies=limits, environment=environment) as served:
            warm = body_for("/api/generate", MODEL, "x", tokens=1)
            assert served.http.post("/api/generate", json=warm).status_code == 200
            yield Spied(served, notes, door)


def refused(answer: httpx.Response, said: str = "") -> None:
    """`said`: by the client, who may be told so."""
    content = answer.content.replace(said.encode(), b"") if said else answer.content
    assert 400 <= answer.status_code < 500, answer.text[:300]
    assert len(answer.content) < 2000
    for leak in (b"Traceback", b'File "', b"/tmp/"):
        assert leak not in content


def test_the_spy_sees_who_is_spoken_to(spied: Spied, tmp_path: Path) -> None:
    """Else the other tests could not fail."""
    import subprocess
    import sys

    notes, site = tmp_path / "notes", tmp_path / "sitecustomize.py"
    site.write_text(SPY)
    code = f"import socket; socket.create_connection({tuple(spied.host.split(':'))!r})"
    environment = {"PYTHONPATH": str(tmp_path), "SPIED": str(notes)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert f"look up '{spied.host.split(':')[0]}'" in notes.read_text()
    assert "connect" in notes.read_text()
    assert spied.went()[-1] == "somebody came"


@pytest.mark.parametrize("pattern", ELSEWHERE)
@pytest.mark.parametrize("insecure", [False, True])
def test_no_place_that_a_client_names_is_pulled_from(
    spied: Spied, pattern: str, insecure: bool
) -> None:
    body = {"model": spied.named(pattern), "insecure": insecure, "stream": False}
    refused(spied.served.http.post("/api/pull", json=body))
    assert spied.went() == []


@pytest.mark.parametrize("pattern", ELSEWHERE)
def test_nothing_is_made_of_a_place_that_a_client_names(spied: Spied, pattern: str) -> None:
    name = spied.named(pattern)
    refused(spied.served.http.post("/api/create", json={"model": "new", "from": name}))
    digest = f"sha256:{'0' * 64}"
    files = {"model": "new", "files": {name: digest}}
    refused(spied.served.http.post("/api/create", json=files))
    refused(spied.served.http.post("/api/copy", json={"source": name, "destination": "new"}))
    assert spied.went() == []
    shown = spied.served.http.get("/api/tags").text
    assert '"new' not in shown


def _pictures(url: str) -> Iterator[tuple[str, Json]]:
    """Everywhere that an API has room for an address."""
    parts: tuple[Json, ...] = (
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "image_url", "image_url": url},
        {"type": "file", "file": {"file_url": url}},
        {"type": "input_audio", "input_audio": {"data": url, "format": "wav"}},
    )
    for part in parts:
        turns = [{"role": "user", "content": [{"type": "text", "text": "x"}, part]}]
        yield "/v1/chat/completions", {"messages": turns}
    for source in ({"type": "url", "url": url}, {"type": "file", "file_id": url}):
        for kind in ("image", "document"):
            turns = [{"role": "user", "content": [{"type": kind, "source": source}]}]
            yield "/v1/messages", {"messages": turns, "max_tokens": 1}
    for item in (
        {"type": "input_image", "image_url": url},
        {"type": "input_file", "file_url": url},
    ):
        yield "/v1/responses", {"input": [{"role": "user", "content": [item]}]}
    yield "/api/chat", {"messages": [{"role": "user", "content": "x", "images": [url]}]}
    yield "/api/generate", {"prompt": "x", "images": [url]}
    mcp = {"type": "url", "name": "x", "url": url}
    turns = [{"role": "user", "content": "x"}]
    yield "/v1/messages", {"messages": turns, "max_tokens": 1, "mcp_servers": [mcp]}
    tool = {"type": "mcp", "server_label": "x", "server_url": url}
    yield "/v1/responses", {"input": "x", "tools": [tool]}


@pytest.mark.parametrize(
    "pattern", ["{url}/x.png", "file:///etc/passwd", "https://evil.example/x.png"]
)
def test_no_address_in_a_request_is_fetched(spied: Spied, pattern: str) -> None:
    for path, body in _pictures(spied.named(pattern)):
        refused(spied.served.http.post(path, json=body | {"model": MODEL, "stream": False}))
    assert spied.went() == []


TEMPLATES = (
    "{% include 'file:///etc/passwd' %}",
    "{% import '/etc/passwd' as x %}{{ x }}",
    "{% extends '{url}' %}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ cycler.__init__.__globals__.os.system('id') }}",
    "{{ joiner.__class__.__mro__[1].__subclasses__() }}",
    "{{ self.__init__.__globals__ }}",
    "{{ ''|attr('__class__') }}{{ (''|attr('__class__')).mro() }}",
    "{{ messages.__class__ }}{{ messages.append(1) }}",
    "{{ 'x' * 10**10 }}",
    "{{ '%9999999999d' % 1 }}",
    "{{ '{:9999999999}'.format(1) }}",
    "{{ 'x' | center(10**10) }}",
    "{{ range(10**9) | list }}",
    "{{ 10 ** (10 ** 9) }}",
    "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "{% set n = namespace(x='x') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{% for a in range(9999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_clients_template_reads_nothing_and_ends(spied: Spied, template: str) -> None:
    turns = [{"role": "user", "content": "hi"}]
    body = {"model": MODEL, "prompt": "hi", "template": template, "stream": False}
    answer = spied.served.http.post(
        "/api/generate", json=body | {"options": {"num_predict": 1}, "messages": turns}
    )
    refused(answer)
    for secret in (b"root:", b"uid=", b"subclasses", b"<class"):
        assert secret not in answer.content
    assert spied.went() == []
    assert len(spied.served.workers()) == 1


def _tree(*folders: Path) -> dict[str, str]:
    """All that is there, by path."""
    found: dict[str, str] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            whole = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            mode = path.lstat().st_mode
            found[str(path)] = f"{mode:o} {hashlib.sha256(whole).hexdigest()}"
    return found


@pytest.fixture
def guarded(
    start_daemon: Callable[..., Daemon], models: Path, tmp_path: Path
) -> tuple[Daemon, Callable[[], dict[str, str]]]:
    """A daemon, and what is outside of its state: models, and somebody's own files."""
    own = tmp_path / "models"
    own.mkdir()
    (own / MODEL).symlink_to(models / MODEL)
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "config.json").write_text('{"model_type": "llama"}')
    (secrets / "key").write_text("mine")
    (own / "linked").symlink_to(secrets)
    served = start_daemon(models=own)
    return served, lambda: _tree(own, secrets, models / MODEL)


def test_names_that_climb_change_nothing_outside(
    guarded: tuple[Daemon, Callable[[], dict[str, str]]], tmp_path: Path
) -> None:
    served, outside = guarded
    before = outside()
    climbing = [
        *PATHS_ONLY, "../models/x", "../../secrets", str(tmp_path / "secrets"), "linked", MODEL,
        "../created/x", ".blobs/x", f"../{MODEL}", "a/../../../secrets/key",
    ]  # fmt: skip
    for name in climbing:
        refused(served.http.request("DELETE", "/api/delete", json={"model": name}), name)
        copied = {"source": MODEL, "destination": name}
        refused(served.http.post("/api/copy", json=copied), name)
        refused(served.http.post("/api/create", json={"model": name, "from": MODEL}), name)
        escaped = quote(name[:500], safe="")
        assert served.http.get(f"/api/models/{escaped}").status_code in (200, 400, 404, 503)
        for digest in (name[:500], f"sha256:../{name[:100]}", f"sha256-{'0' * 63}/"):
            path = f"/api/blobs/{quote(digest, safe='')}"
            refused(served.http.post(path, content=b"x"), name)
    assert outside() == before
    assert "a defect" not in served.log_text()
    assert "Traceback" not in served.log_text()


def test_files_of_a_client_are_named_by_no_path(start_daemon: Callable[..., Daemon]) -> None:
    served = start_daemon()
    content = json.dumps({"model_type": "llama"}).encode()
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert served.http.post(f"/api/blobs/{digest}", content=content).status_code == 201
    for file in ("../x.json", "/etc/x.json", "a/b.json", "..", ".hidden", "own.py", "x\0.json"):
        made = served.http.post("/api/create", json={"model": "new", "files": {file: digest}})
        refused(made)
    inside = {path.name for path in served.state.rglob("*")}
    assert not inside & {"x.json", "b.json", "own.py"}
