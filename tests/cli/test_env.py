"""`mlxd env`: what a shell is told, and that no secret is among it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mlxd.cli import exits
from mlxd.core.claim import Claim
from mlxd.core.instance import Address
from tests.support.command import mlxd
from tests.support.daemon import Daemon, daemon, free_port

GUIDE = (Path(__file__).parents[2] / "docs/guides/clients.md").read_text(encoding="utf-8")
KEYS = {"OPENAI_API_KEY", "ANTHROPIC_AUTH_TOKEN"}


def told(state: Path, shell: str = "sh") -> dict[str, str]:
    """What a shell has after the `eval`, that it had not before."""
    said = mlxd("env", "--state", state)
    assert said.returncode == 0
    done = subprocess.run(
        [shell, "-c", 'eval "$0"; env', said.stdout],
        check=True, capture_output=True, text=True, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    pairs = (line.partition("=") for line in done.stdout.splitlines())
    return {name: text for name, _, text in pairs if re.match("OLLAMA|OPENAI|ANTHROPIC|MLX", name)}


def expected(base: str) -> dict[str, str]:
    return {
        "OLLAMA_HOST": base.removeprefix("http://"),
        "OLLAMA_API_BASE": base,
        "OLLAMA_BASE_URL": base,
        "OLLAMA_URL": base,
        "MLX_API_URL": base,
        "OPENAI_BASE_URL": f"{base}/v1",
        "OPENAI_API_BASE": f"{base}/v1",
        "OPENAI_API_BASE_URL": f"{base}/v1",
        "ANTHROPIC_BASE_URL": base,
    }


@pytest.mark.parametrize(
    "shell", [one for one in ("sh", "bash", "zsh") if shutil.which(one) is not None]
)
def test_a_daemon_that_wants_no_key_has_a_placeholder(shared_daemon: Daemon, shell: str) -> None:
    found = told(shared_daemon.state, shell)
    assert found == expected(shared_daemon.url) | dict.fromkeys(KEYS, "any")
    headers = {"Authorization": f"Bearer {found['OPENAI_API_KEY']}"}
    assert shared_daemon.http.get("/v1/models", headers=headers).status_code == 200


def test_one_that_wants_a_key_says_how_it_is_made_and_tells_none(tmp_path: Path) -> None:
    clients = {"clients": "auth: {required: false}\n"}
    with daemon(tmp_path, policies=clients) as running:
        where = ("--policies", running.policies, "--state", running.state)
        made = mlxd("keys", "add", "me", *where)
        assert made.returncode == 0, made.stderr
        running.edit("clients", "auth: {required: true}\n")
        running.wait_for_generation(1, within=20)
        assert told(running.state) == expected(running.url)
        said = mlxd("env", "--state", running.state).stdout
        assert said.splitlines()[-1].startswith("# it wants an API key")
        assert "mlxd keys add NAME" in said
        assert made.stdout.strip() not in said


def test_where_nothing_answers_no_key_is_made_up(tmp_path: Path) -> None:
    port = free_port()
    claim = Claim(tmp_path / "state")
    claim.take()
    claim.announce(Address(os.getpid(), "::1", port, "0"))
    assert told(tmp_path / "state") == expected(f"http://[::1]:{port}")
    said = mlxd("env", "--state", tmp_path / "state").stdout
    claim.release()
    assert said.splitlines()[-1].startswith("# no mlxd answers there now")


def test_every_variable_is_in_the_guide(tmp_path: Path) -> None:
    named = set(re.findall(r"`([A-Z_]+)`", GUIDE))
    assert (set(expected("")) | KEYS) - named <= {"OLLAMA_URL", "MLX_API_URL"}


@pytest.mark.parametrize(
    "url", ["http://h:99999", "http://[", "http://x;>pwn", "http://$(id)", "localhost"]
)
@pytest.mark.parametrize("command", ["env", "status"])
def test_what_is_no_address_is_said_and_printed_for_no_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, command: str
) -> None:
    monkeypatch.setenv("MLX_API_URL", url)
    done = mlxd(command, "--state", tmp_path)
    assert (done.returncode, done.stdout) == (exits.USAGE, "")
    assert "MLX_API_URL" in done.stderr
    assert "Traceback" not in done.stderr
