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
from mlxd.core.request import GenerationRequest
from mlxd.worker.grammar import Grammars
from mlxd.worker.loading import load
from mlxd.worker.prompt import Prompter

loaded = load(Path(sys.argv[1]))
Prompter(loaded.tokenizer)
asked = GenerationRequest(model="m", text="x", format="json")
Grammars(loaded.tokenizer, loaded.width).compile(asked, reasoning=False, may_think=False)
loaded.tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}])
look("loaded")

package, models = sys.modules[stand_in.PACKAGE], sys.modules[stand_in.MODELS]
import transformers.tokenization_utils_fast as old
look("asked for an older module")
models.LlamaConfig
look("asked for another name")
from transformers import AutoTokenizer, LlamaConfig
from transformers.models.auto import tokenization_auto
told["same"] = [
    package.LlamaConfig is models.LlamaConfig is LlamaConfig,
    package.AutoTokenizer is tokenization_auto.AutoTokenizer is AutoTokenizer,
    isinstance(loaded.tokenizer._tokenizer, old.PreTrainedTokenizerFast),
    type(loaded.tokenizer._tokenizer) is type(AutoTokenizer.from_pretrained(sys.argv[1])),
    not hasattr(package, "NoSuchName"),
    "LlamaConfig" in package.__all__,
]
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


def test_whoever_asks_for_more_gets_the_whole_package(told: dict[str, Any]) -> None:
    """Tokenizers that come with a model do, and name modules that were renamed long ago."""
    assert told["asked for an older module"] == [False, True]
    assert told["asked for another name"] == [False, False]
    assert told["same"] == [True] * 6


def test_another_major_version_is_imported_as_it_is(told: dict[str, Any]) -> None:
    assert told["another version"] == [False, False]


def test_a_worker_places_it_before_it_imports_its_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    assembly = SimpleNamespace(assemble=lambda *_: made.append("engine"))
    monkeypatch.setitem(sys.modules, "mlxd.worker.assembly", assembly)
    monkeypatch.setattr(stand_in, "install", lambda: made.append("stand-in"))
    worker._imported()(Launch(path="m", context=1), Mock(), Mock(), 0.0)
    assert made == ["stand-in", "engine"]
