"""The stand-in for transformers: that a worker needs no more, and that others get the whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from mlxd.ipc.messages import Launch
from mlxd.worker import __main__ as worker
from mlxd.worker import stand_in

TELLING = """
import importlib.metadata, json, sys
from pathlib import Path
from mlxd.worker import stand_in

told = {}

def look(moment):
    names = (stand_in.PACKAGE, stand_in.MODELS)
    told[moment] = [isinstance(sys.modules.get(name), stand_in.StandIn) for name in names]

known = importlib.metadata.version
stand_in.version = lambda package: "6.0.0"
stand_in.install()
look("another version")
stand_in.version = known
stand_in.install()
import mlxd.worker.assembly
from mlxd.worker.grammar import Grammars
from mlxd.worker.loading import load
from mlxd.worker.prompt import Prompter

loaded = load(Path(sys.argv[1]))
Prompter(loaded.tokenizer)
Grammars(loaded.tokenizer, loaded.width).compile("json", 1, reasoning=False, may_think=False)
loaded.tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}])
look("loaded")

import transformers
from transformers import AutoTokenizer, LlamaConfig
look("asked for more")
import transformers.tokenization_utils_fast as old
from transformers.models.auto import tokenization_auto
told["same"] = [
    AutoTokenizer is tokenization_auto.AutoTokenizer,
    isinstance(loaded.tokenizer._tokenizer, old.PreTrainedTokenizerFast),
    transformers.LlamaConfig is LlamaConfig,
    hasattr(transformers, "NoSuchName"),
    type(loaded.tokenizer._tokenizer) is type(AutoTokenizer.from_pretrained(sys.argv[1])),
]
told["models"] = transformers.models.LlamaConfig is LlamaConfig
look("asked for its models")
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(models: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", TELLING, str(models / "tiny-a")],
        capture_output=True,
        check=True,
        timeout=60,
    )
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_a_model_is_loaded_and_asked_without_the_whole_package(told: dict[str, Any]) -> None:
    assert told["loaded"] == [True, True]


def test_whoever_asks_for_another_name_gets_the_whole_package(told: dict[str, Any]) -> None:
    assert told["asked for more"] == [False, True]
    assert told["asked for its models"] == [False, False]
    assert told["same"] == [True, True, True, False, True]
    assert told["models"]


def test_another_major_version_is_imported_as_it_is(told: dict[str, Any]) -> None:
    assert told["another version"] == [False, False]


@pytest.mark.parametrize("trusted", [False, True])
def test_code_of_a_models_own_finds_the_whole_package(
    trusted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    assembly = SimpleNamespace(assemble=lambda *_: made.append("engine"))
    monkeypatch.setitem(sys.modules, "mlxd.worker.assembly", assembly)
    monkeypatch.setattr(stand_in, "install", lambda: made.append("stand-in"))
    launch = Launch(path="m", context=1, trust_remote_code=trusted)
    worker._assemble(launch, Mock(), Mock(), 0.0)
    assert made == ["engine"] if trusted else made == ["stand-in", "engine"]
