"""A stranger's model folder: it is loaded or refused in words, and nothing in it is run."""

from __future__ import annotations

import json
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlxd.worker.refusal import LoadError
from tests.support.model_maker import Shape, make_model
from tests.support.worker_process import WorkerProcess

pytestmark = pytest.mark.mlx
SECONDS = 5.0
"""Of the processor, for any of them."""
BACKTRACKS = {
    "type": "Split",
    "pattern": {"Regex": "(a+)+$"},
    "behavior": "Isolated",
    "invert": False,
}
"""Its engine gives up on some texts, as a panic."""
SCALING = {
    "rope_type": "llama3", "factor": 1e308, "low_freq_factor": 0, "high_freq_factor": 0,
    "original_max_position_embeddings": 0,
}  # fmt: skip


def changed(folder: Path, file: str, **values: Any) -> None:
    path = folder / file
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**known, **values}))


def config(**values: Any) -> Callable[[Path], None]:
    return lambda folder: changed(folder, "config.json", **values)


def tokenizer_config(**values: Any) -> Callable[[Path], None]:
    return lambda folder: changed(folder, "tokenizer_config.json", **values)


def tokenizer(**values: Any) -> Callable[[Path], None]:
    return lambda folder: changed(folder, "tokenizer.json", **values)


REFUSED: dict[str, Callable[[Path], None]] = {
    "layers below zero": config(num_hidden_layers=-5),
    "layers past all machines": config(num_hidden_layers=10**30),
    "half a layer": config(num_hidden_layers=2.5),
    "a vocabulary of a billion": config(vocab_size=10**9),
    "a width of 2^40": config(hidden_size=2**40),
    "a head of 10^12": config(head_dim=10**12),
    "no heads": config(num_attention_heads=0),
    "lists for numbers": config(hidden_size=[64], num_hidden_layers={"a": 1}),
    "a scale over nothing": config(rope_scaling=SCALING),
    "an architecture that is none": config(model_type="cache"),
    "an architecture by a path": config(model_type="../../../../tmp/evil"),
    "an architecture by dots": config(model_type="..server"),
    "an architecture that is a number": config(model_type=5),
    "a parser by a path": tokenizer_config(tool_parser_type="../../evil"),
    "a parser elsewhere": tokenizer_config(tool_parser_type="os.path"),
    "a template's code elsewhere": tokenizer_config(chat_template_type="os.path"),
    "brackets without end": tokenizer(
        pre_tokenizer={**BACKTRACKS, "pattern": {"Regex": "(" * 5000 + "a" + ")" * 5000}}
    ),
    "merges of nothing": tokenizer(model={"type": "BPE", "vocab": {"a": 0}, "merges": ["x y"]}),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_model(tmp_path / "secret-place" / "m", Shape())


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_is_refused_in_words(folder: Path, what: str) -> None:
    from mlxd.worker.loading import load

    REFUSED[what](folder)
    began = time.process_time()
    with pytest.raises(LoadError) as caught:
        load(folder)
    assert time.process_time() - began < SECONDS
    words = str(caught.value)
    assert 10 < len(words) < 400
    assert "secret-place" not in words
    assert "Traceback" not in words


class _Burglar:
    """Whoever unpickles it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("kept", [True, False], ids=["with tokenizer.json", "without"])
def test_no_code_and_no_pickle_of_a_folder_is_run(folder: Path, tmp_path: Path, kept: bool) -> None:
    from mlxd.worker.loading import load

    mark = tmp_path / "mark"
    code = f"import os\nos.mkdir({str(mark)!r})\nclass T: pass\n"
    for name in ("own.py", "tokenizer.py", "tokenization_own.py", "chat_template.py"):
        (folder / name).write_text(code)
    for name in ("pytorch_model.bin", "model.bin", "tokenizer.pkl", "model.pt"):
        (folder / name).write_bytes(pickle.dumps(_Burglar(mark)))
    auto = {"AutoTokenizer": ["own.T", "own.T"], "AutoConfig": "own.T", "AutoModel": "own.T"}
    changed(folder, "tokenizer_config.json", auto_map=auto, tokenizer_class="T")
    changed(folder, "config.json", auto_map=auto, custom_code=True, trust_remote_code=True)
    if not kept:
        (folder / "tokenizer.json").unlink()
    with pytest.raises(LoadError, match="the tokenizer"):
        load(folder)
    assert not mark.exists()


def test_a_file_that_names_its_own_code_is_not_loaded_even_so(folder: Path, tmp_path: Path) -> None:
    from mlxd.worker.loading import load

    mark = tmp_path / "mark"
    (folder / "own.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    changed(folder, "config.json", model_file="own.py", trust_remote_code=True)
    with pytest.raises(LoadError, match="trust"):
        load(folder)
    assert not mark.exists()
    with pytest.raises(LoadError):
        load(folder, trust=True)
    assert mark.exists(), "where its policy says so, it is run"


def test_a_tokenizer_that_panics_refuses_one_text_and_reads_the_next(folder: Path) -> None:
    tokenizer(pre_tokenizer=BACKTRACKS)(folder)
    worker = WorkerProcess(folder)
    try:
        refused = worker.run(text="a" * 28 + "b", max_tokens=2).refused
        assert refused is not None
        assert refused.message == "the request could not be prepared for this model"
        assert worker.run(text="hi", max_tokens=2).ended is not None
    finally:
        worker.close()
