"""The `llm` command, with its plugin for Ollama and by its own settings for OpenAI's API."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients_real.questions import GUIDE, PERSON, PORT, TINY
from tests.clients_real.servers import Server

LLM = Path(sys.executable).with_name("llm")


@pytest.fixture
def folder(tmp_path: Path, main: Server) -> Path:
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: by-openai\n  model_name: {GUIDE}\n  api_base: {main.v1}\n"
        f"  supports_tools: true\n"
    )
    return tmp_path


def run(folder: Path, main: Server, *arguments: str) -> str:
    environment = {
        **os.environ,
        "LLM_USER_PATH": str(folder),
        "OLLAMA_HOST": main.url,
        "OPENAI_API_KEY": "any",
    }
    ended = subprocess.run(
        [LLM, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_models_are_found(folder: Path, main: Server) -> None:
    listed = run(folder, main, "ollama", "models")
    assert GUIDE in listed
    assert TINY in listed


@pytest.mark.parametrize("model", [f"ollama/{GUIDE}:latest", "by-openai"])
@pytest.mark.parametrize("stream", ["--no-stream", "streamed"])
def test_an_answer(folder: Path, main: Server, model: str, stream: str) -> None:
    more = [stream] if stream.startswith("--") else []
    assert "11435" in run(folder, main, "-m", model, *more, PORT)


def test_a_schema_is_kept_to(folder: Path, main: Server) -> None:
    options = (
        "-m",
        f"ollama/{TINY}:latest",
        "--schema",
        json.dumps(PERSON),
        "-o",
        "num_predict",
        "200",
    )
    answer = json.loads(run(folder, main, *options, PORT))
    assert answer.keys() == {"name", "age", "grown"}
