"""A second turn in a real daemon: what was cached is told in every dialect, and counted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlxd.cli import main
from tests.integration.conftest import NO_LIMITS
from tests.support.daemon import Daemon, daemon
from tests.support.model_maker import Shape, make_model

pytestmark = pytest.mark.mlx
SYSTEM = "You are an agent, and answer at length. " * 12
TURNS = [
    {"role": "user", "content": "Who are you, and what is it that you do all day?"},
    {"role": "assistant", "content": "This and that."},
    {"role": "user", "content": "And now?"},
]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder: Path = tmp_path_factory.mktemp("kept")
    make_model(folder / "models" / "agent", Shape(spread=3.0))
    policies = {"limits": NO_LIMITS, "memory": "prefix_cache: {disk: off}\n"}
    with daemon(folder, models=folder / "models", policies=policies) as made:
        yield made


def post(running: Daemon, path: str, body: dict[str, Any], **headers: str) -> Any:
    answer = running.http.post(path, json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer


def chat(running: Daemon, system: str = SYSTEM, **more: Any) -> Any:
    messages = [{"role": "system", "content": system}, *TURNS]
    body = {"model": "agent", "messages": messages, "max_tokens": 4, "temperature": 0}
    return post(running, "/v1/chat/completions", body | more).json()


def cached_openai(running: Daemon) -> tuple[int, int]:
    usage = chat(running)["usage"]
    return usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]


def cached_streamed(running: Daemon) -> tuple[int, int]:
    messages = [{"role": "system", "content": SYSTEM}, *TURNS]
    body = {
        "model": "agent", "messages": messages, "max_tokens": 4, "temperature": 0,
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    lines = post(running, "/v1/chat/completions", body).text.splitlines()
    said = [line.removeprefix("data: ") for line in lines if line.startswith("data: {")]
    usage = json.loads(said[-1])["usage"]
    return usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]


def cached_responses(running: Daemon) -> tuple[int, int]:
    body = {
        "model": "agent", "instructions": SYSTEM, "input": TURNS, "max_output_tokens": 4,
        "temperature": 0,
    }  # fmt: skip
    usage = post(running, "/v1/responses", body).json()["usage"]
    return usage["input_tokens"], usage["input_tokens_details"]["cached_tokens"]


def anthropic_body(**more: Any) -> dict[str, Any]:
    return {
        "model": "agent", "system": SYSTEM, "messages": TURNS, "max_tokens": 4, "temperature": 0,
        "cache_control": {"type": "ephemeral"},
    } | more  # fmt: skip


def cached_anthropic(running: Daemon) -> tuple[int, int]:
    usage = post(running, "/v1/messages", anthropic_body()).json()["usage"]
    cached = usage["cache_read_input_tokens"]
    return usage["input_tokens"] + cached, cached


def cached_anthropic_start(running: Daemon) -> tuple[int, int]:
    """As the first event has it."""
    text = post(running, "/v1/messages", anthropic_body(stream=True)).text
    start = json.loads(text.partition("data: ")[2].partition("\n")[0])
    usage = start["message"]["usage"]
    cached = usage["cache_read_input_tokens"]
    return usage["input_tokens"] + cached, cached


@pytest.mark.parametrize(
    "ask",
    [
        cached_openai,
        cached_streamed,
        cached_responses,
        cached_anthropic,
        cached_anthropic_start,
    ],
)
def test_what_was_cached_is_told(running: Daemon, ask: Any) -> None:
    ask(running)
    prompt, cached = ask(running)
    assert prompt - 1 >= cached > prompt * 3 // 4


def test_ollama_counts_all_of_the_prompt(running: Daemon) -> None:
    messages = [{"role": "system", "content": SYSTEM}, *TURNS]
    body = {"model": "agent", "messages": messages, "stream": False, "options": {"num_predict": 4}}
    first, second = (post(running, "/api/chat", body).json() for _ in range(2))
    assert second["prompt_eval_count"] == first["prompt_eval_count"] > 100


def test_a_miss_names_the_token_and_the_message(
    running: Daemon, capsys: pytest.CaptureFixture[str]
) -> None:
    chat(running)
    turns = [*TURNS[:2], {"role": "user", "content": "Something else, SECRETWORD?"}]
    messages = [{"role": "system", "content": SYSTEM}, *turns]
    body = {"model": "agent", "messages": messages, "max_tokens": 4, "temperature": 0}
    post(running, "/v1/chat/completions", body, **{"X-Request-Id": "explained"})
    assert main(["explain", "explained", "--state", str(running.state)]) == 0
    told = capsys.readouterr().out
    assert re.search(
        r"of its prompt [\d,]+ tokens were kept: the nearest kept prompt differs at token [\d,]+,"
        r" in message 4 \(user\)",
        told,
    ), told
    assert "SECRETWORD" not in told
    assert "SECRETWORD" not in running.log_text()


def test_it_is_counted_shown_and_forgotten(
    running: Daemon, capsys: pytest.CaptureFixture[str]
) -> None:
    chat(running)
    chat(running)
    (before,) = running.admin.get("/admin/cache")["models"]
    assert before["entries"] > 0
    assert 0 < before["bytes"] <= before["budget_bytes"]
    assert before["lookups"]["whole"] > 0
    metrics = running.http.get("/metrics").text
    assert (
        f'mlxd_prefix_tokens_total{{kind="reused",model="agent"}} {before["reused_tokens"]}.0'
        in metrics
    )
    shown = running.health()["cached_models"][0]["memory_bytes"]
    assert shown["prefix_budget"] == before["budget_bytes"]
    assert main(["cache", "stats", "--state", str(running.state)]) == 0
    assert main(["cache", "clear", "agent", "--state", str(running.state)]) == 0
    assert "agent keeps nothing in memory" in capsys.readouterr().out
    (after,) = running.admin.get("/admin/cache", model="agent")["models"]
    assert (after["entries"], after["bytes"]) == (0, 0)
    assert chat(running)["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_policy_switches_it_off_and_on_live(running: Daemon) -> None:
    chat(running)
    running.edit("memory", "prefix_cache: {memory: off, disk: off}\n")
    running.reload()
    (off,) = running.admin.get("/admin/cache")["models"]
    assert (off["bytes"], off["budget_bytes"]) == (0, 0)
    assert chat(running)["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert chat(running)["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    running.edit("memory", "prefix_cache: {memory: 64MiB, disk: off}\n")
    running.reload()
    (on,) = running.admin.get("/admin/cache")["models"]
    assert on["budget_bytes"] == 64 * 2**20
    chat(running)
    assert chat(running)["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
