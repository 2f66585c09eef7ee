"""API keys against a whole daemon: who is let in, who is not, and that both are live."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import TYPE_CHECKING

import openai
import pytest

from mlxd.server.openapi.document import operations
from mlxd.server.openapi.operation import Operation
from tests.support import command
from tests.support.daemon import Daemon, daemon, free_port, write_policies
from tests.support.later import Later

if TYPE_CHECKING:
    import anthropic
else:
    anthropic = Later("anthropic")

pytestmark = pytest.mark.mlx

NEED = "auth: {required: true, guesses: {max: 20, window: 60s, penalty: 2s}}\n"
WITHIN = 10.0
OPEN = {"/livez", "/readyz", "/health", "/ui", "/ui/", "/ui/session", "/ui/assets/file"}
SAID: list[anthropic.types.MessageParam] = [{"role": "user", "content": "hi"}]


def places(folder: Path) -> list[str]:
    return ["--policies", str(folder / "policies"), "--state", str(folder / "state")]


def mlxd(folder: Path, *arguments: str) -> CompletedProcess[str]:
    return command.mlxd(*arguments, *places(folder))


def new_key(folder: Path, name: str = "agents", *more: str) -> str:
    made = mlxd(folder, "keys", "add", name, *more)
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


def status(running: Daemon, key: str | None, path: str = "/v1/models") -> int:
    headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
    return running.http.get(path, headers=headers).status_code


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keyed")


@pytest.fixture(scope="module")
def keyed(folder: Path, models: Path) -> Iterator[tuple[Daemon, str]]:
    """A daemon that requires keys, and one of them."""
    write_policies(folder / "policies", {"clients": NEED})
    key = new_key(folder)
    with daemon(folder, models=models, policies={"clients": NEED}) as running:
        yield running, key


def test_who_has_no_key_is_refused_in_words_that_clients_know(
    keyed: tuple[Daemon, str], folder: Path
) -> None:
    running, _ = keyed
    with (
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="sk-dummy", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as refused,
    ):
        client.models.list()
    assert refused.value.code == "invalid_api_key"
    with (
        anthropic.Anthropic(base_url=running.url, api_key="dummy", max_retries=0) as claude,
        pytest.raises(anthropic.AuthenticationError),
    ):
        claude.messages.create(model="tiny-a", max_tokens=4, messages=SAID)
    for path in ("/", "/api/tags", "/metrics", "/openapi.json", "/api/events", "/nowhere"):
        answer = running.http.get(path)
        assert answer.status_code == 401
        assert "clients.auth.required: true" in answer.json()["error"]
        assert answer.headers["www-authenticate"] == "Bearer"
    assert running.http.options("/api/chat").status_code == 204
    events = running.admin.get("/admin/events")["events"]
    assert any(event["data"].get("code") == "unauthorized" for event in events)


@pytest.mark.parametrize("operation", operations(), ids=lambda one: f"{one.method} {one.path}")
def test_who_may_ask_for_what(keyed: tuple[Daemon, str], operation: Operation) -> None:
    """A stranger for what is open alone, a key of a tenant for all but the admin side."""
    running, key = keyed
    path = operation.path.replace("{", "").replace("}", "")
    with running.http.stream(operation.method, path) as answer:
        assert (answer.status_code != 401) is (path in OPEN)
    headers = {"Authorization": f"Bearer {key}"}
    with running.http.stream(operation.method, path, headers=headers) as answer:
        assert (answer.status_code == 403) is path.startswith("/admin/")


def test_whoever_looks_whether_it_lives_is_told_and_no_more(
    keyed: tuple[Daemon, str], folder: Path
) -> None:
    running, key = keyed
    assert status(running, None, "/livez") == status(running, None, "/readyz") == 200
    stranger = running.health()
    assert set(stranger) == {
        "status", "service", "version", "active_requests", "max_concurrent", "timestamp",
    }  # fmt: skip
    known = running.http.get("/health", headers={"x-api-key": key}).json()
    assert {"pid", "warnings", "quarantined_requests"} <= set(known)
    told = mlxd(folder, "status")
    assert told.returncode == 0
    assert f"pid {running.pid}" in told.stdout


def test_a_known_key_is_let_in_and_named_in_the_log(
    keyed: tuple[Daemon, str], folder: Path
) -> None:
    running, key = keyed
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0) as client:
        client.chat.completions.create(
            model="tiny-a", max_tokens=2, messages=[{"role": "user", "content": "hi"}]
        )
    with anthropic.Anthropic(base_url=running.url, api_key=key, max_retries=0) as claude:
        claude.messages.create(model="tiny-a", max_tokens=2, messages=SAID)
    line = next(line for line in running.log_text().splitlines() if "/v1/messages 200" in line)
    assert "tenant=agents" in line or '"tenant": "agents"' in line


def test_a_key_counts_from_when_it_is_made_until_it_is_revoked(
    keyed: tuple[Daemon, str], folder: Path
) -> None:
    running, _ = keyed
    added = mlxd(folder, "keys", "add", "bob", "--json")
    assert "the running daemon has read it" in added.stderr
    made = json.loads(added.stdout)
    assert status(running, made["key"]) == 200
    turned = json.loads(
        mlxd(folder, "keys", "rotate", made["id"], "--grace", "0s", "--json").stdout
    )
    assert status(running, turned["key"]) == 200
    assert status(running, made["key"]) == 401
    mlxd(folder, "keys", "revoke", turned["id"])
    assert status(running, turned["key"]) == 401


def test_who_guesses_waits_but_with_a_key_he_came_with_before(
    keyed: tuple[Daemon, str], folder: Path
) -> None:
    running, key = keyed
    new = new_key(folder, "late")
    assert status(running, key) == 200
    for number in range(21):
        if status(running, f"mlxd_{number}") == 429:
            break
    answer = running.http.get("/v1/models", headers={"Authorization": f"Bearer {new}"})
    assert answer.status_code == 429
    assert answer.headers["x-mlxd-code"] == "too_many_guesses"
    assert 1 <= int(answer.headers["retry-after"]) <= 2
    assert status(running, key) == status(running, None, "/livez") == 200
    deadline = time.monotonic() + WITHIN
    while status(running, new) != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_keys_are_required_and_not_by_an_edit(keyed: tuple[Daemon, str]) -> None:
    running, key = keyed
    running.edit("clients", "auth: {required: false}\n")
    running.reload()
    assert status(running, None) == status(running, "dummy") == status(running, key) == 200
    running.edit("clients", NEED)
    running.reload()
    assert status(running, None) == 401
    assert status(running, key) == 200


def test_a_broken_file_keeps_the_last_good_keys(keyed: tuple[Daemon, str], folder: Path) -> None:
    running, key = keyed
    file = folder / "state" / "keys.yaml"
    good = file.read_bytes()
    file.write_bytes(b"schema: mlxd-keys/v1\nkeys: 5\n")
    running.admin.post("/admin/keys/reload")
    assert status(running, key) == 200
    known = running.http.get("/health", headers={"x-api-key": key}).json()
    assert any("keys.yaml:2:1" in warning for warning in known["warnings"])
    file.write_bytes(good)
    running.admin.post("/admin/keys/reload")
    assert status(running, key) == 200


def test_keys_in_a_file_that_policy_names_count_at_once(
    keyed: tuple[Daemon, str], folder: Path, tmp_path: Path
) -> None:
    running, _ = keyed
    try:
        running.edit("clients", f"{NEED.rstrip()[:-1]}, keys_file: {tmp_path / 'others'}}}\n")
        made = mlxd(folder, "keys", "add", "agents")
        assert "the running daemon has read it: 1 valid" in made.stderr
        assert status(running, made.stdout.strip()) == 200
    finally:
        running.edit("clients", NEED)
        running.reload()


def test_no_key_is_anywhere_but_with_its_owner(keyed: tuple[Daemon, str], folder: Path) -> None:
    running, key = keyed
    bad = "mlxd_" + "SECRET" * 8
    headers = {"Authorization": f"Bearer {bad}"}
    running.http.post("/api/chat", headers=headers, content=b"{")
    running.http.get("/health", headers={"x-api-key": key})
    admin = [
        json.dumps(running.admin.get(path))
        for path in ("/admin/policy/effective", "/admin/events", "/admin/health", "/admin/policy")
    ]
    seen = [running.log_text(), *admin]
    for place, _, names in os.walk(folder):
        for name in names:
            file = Path(place, name)
            if file.is_file() and not file.is_symlink():
                seen.append(file.read_bytes().decode("utf-8", "replace"))
    assert not any(secret in text for text in seen for secret in (key, bad, key[5:]))


def test_a_wider_door_waits_for_a_key(tmp_path: Path) -> None:
    """Without one, neither a start nor an edit opens it, and both say why in the same words."""
    port = free_port()
    server = f"listen: {{port: {port}}}\n"
    with daemon(tmp_path, port=port, port_flag=False, policies={"server": server}) as running:
        running.edit("server", f"listen: {{port: {port}, host: 0.0.0.0}}\n")
        outcome = running.reload()
        assert outcome["result"] == "refused"
        said = outcome["errors"][0]["text"]
        assert "0.0.0.0 can be reached by other machines" in said
        assert "`mlxd keys add NAME`" in said
        checked = mlxd(tmp_path, "policy", "check")
        assert (checked.returncode, checked.stderr.strip()) == (2, said)
        assert status(running, None, "/livez") == 200
        before = running.generation()
        key = new_key(tmp_path)
        running.wait_for_generation(before, WITHIN)
        deadline = time.monotonic() + WITHIN
        while status(running, None) != 401:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert status(running, key) == 200
    (tmp_path / "state" / "keys.yaml").unlink()
    (tmp_path / "state" / "lkg").rename(tmp_path / "lkg")
    start = subprocess.run(
        [sys.executable, "-m", "mlxd", "serve", *places(tmp_path)],
        check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert start.returncode == 2
    assert said in start.stderr
