"""What was computed of prompts outlives the daemon: on disk, until it is told to be off."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import NO_LIMITS
from tests.support.daemon import Daemon, daemon
from tests.support.model_maker import Shape, make_model

pytestmark = pytest.mark.mlx
SYSTEM = "You are an agent, and answer at length. " * 40
LONGEST = 30.0


def ask(running: Daemon, text: str, **more: Any) -> tuple[int, str]:
    """Tokens of the prompt that were not computed, and the answer."""
    body = {
        "model": "agent",
        "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}],
        "max_tokens": 8,
        "temperature": 0,
        **more,
    }
    answer = running.http.post("/v1/chat/completions", json=body).json()
    details = answer["usage"].get("prompt_tokens_details") or {}
    return details.get("cached_tokens", 0), answer["choices"][0]["message"]["content"]


def metrics(running: Daemon) -> str:
    return running.http.get("/metrics").text


def entries(running: Daemon) -> list[Path]:
    return sorted((running.state / "prefixes").rglob("*.prefix"))


def until(fact: Callable[[], Any]) -> None:
    deadline = time.monotonic() + LONGEST
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_restart_is_warm(tmp_path: Path) -> None:
    make_model(tmp_path / "models" / "agent", Shape(spread=3.0))
    policies = {"limits": NO_LIMITS}
    with daemon(tmp_path, models=tmp_path / "models", policies=policies) as running:
        cold, answer = ask(running, "Who are you?")
        running.stop()
        assert cold == 0
        assert {file.stat().st_mode & 0o777 for file in entries(running)} == {0o600}
    with daemon(tmp_path, models=tmp_path / "models", policies=policies) as running:
        warm, again = ask(running, "Who are you?")
        assert warm > 256
        assert again == answer
        assert SYSTEM[:20] not in running.log_text()


@pytest.mark.slow
def test_deaths_and_damage_cost_nothing_but_time_and_off_is_empty(tmp_path: Path) -> None:
    make_model(tmp_path / "models" / "agent", Shape(spread=3.0))
    policies = {"limits": NO_LIMITS}
    with daemon(tmp_path, models=tmp_path / "models", policies=policies) as running:
        cold, answer = ask(running, "Who are you?")
        assert cold == 0
        until(lambda: len(entries(running)) >= 1)  # written while it has nothing to do
        running.stop()
        assert {file.stat().st_mode & 0o777 for file in entries(running)} == {0o600}
    with daemon(tmp_path, models=tmp_path / "models", policies=policies) as running:
        warm, again = ask(running, "Who are you?")
        assert warm > 256
        assert again == answer
        for worker in running.workers():
            worker.send_signal(signal.SIGKILL)
        assert ask(running, "What now?")[0] > 256
        for file in entries(running):
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 1
            file.write_bytes(content)
        for worker in running.workers():
            worker.send_signal(signal.SIGKILL)
        damaged, told = ask(running, "Who are you?")
        assert told == answer
        assert damaged == 0
        assert "damaged" in running.log_text()
        assert SYSTEM[:20] not in running.log_text()
        until(lambda: entries(running))
        running.edit("memory", "prefix_cache: {disk: off}\n")
        until(lambda: not (running.state / "prefixes").exists())
        ask(running, "And now?")
    assert not (tmp_path / "state" / "prefixes").exists()


@pytest.mark.slow
def test_warm_prompts_are_read_before_anybody_asks(tmp_path: Path) -> None:
    make_model(tmp_path / "models" / "agent", Shape(spread=3.0))
    prompt = tmp_path / "agent.txt"
    prompt.write_text(SYSTEM + "\n")
    models = (
        f"dirs: [{tmp_path / 'models'}]\npreload: [agent]\n"
        f"models: {{agent: {{prefixes: {{warm: [{prompt}, {tmp_path / 'none.txt'}]}}}}}}\n"
    )
    policies = {"limits": NO_LIMITS, "models": models}
    with daemon(tmp_path, policies=policies) as running:
        until(lambda: any(".kept" in file.name for file in entries(running)))
        assert ask(running, "Who are you?")[0] > 256
        assert any("none.txt" in warning for warning in running.health()["warnings"])
        assert 'mlxd_prefix_lookups_total{model="agent",result="whole"} 1.0' in metrics(running)
