"""Encoders: what transformers makes of the same weights, and a worker that serves one."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm.utils
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten
from msgspec import structs

from mlxd.ipc.messages import Vector, unpacked
from mlxd.worker import encoder
from mlxd.worker.architectures import classes_of
from mlxd.worker.encoder import Encoder, EncoderArgs, encoder_footprint
from tests.support.encoder_maker import DATA, make_encoder
from tests.support.model_maker import Shape, make_model
from tests.worker.bench import Bench, Heard

pytestmark = pytest.mark.mlx

KINDS = sorted(path.name for path in DATA.iterdir() if path.is_dir())


def loaded(folder: Path) -> Any:
    model, _ = mlx_lm.utils.load_model(folder, get_model_classes=partial(classes_of, folder))
    return model


def expected(kind: str) -> list[tuple[list[int], Any]]:
    told = json.loads((DATA / kind / "expected.json").read_text())
    return list(zip(told["tokens"], map(np.array, told["means"]), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_what_transformers_makes_of_it(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded(DATA / kind)
    for tokens, mean in expected(kind):
        states = model(mx.array([tokens]))
        assert np.allclose(np.array(states[0].mean(axis=0)), mean, atol=1e-5)
        monkeypatch.setattr(encoder, "QUERIES", 5)
        apart = model(mx.array([tokens]))
        assert np.allclose(np.array(apart), np.array(states), atol=1e-5)
        monkeypatch.undo()


def test_quantised_weights_are_read(tmp_path: Path) -> None:
    config = {
        "model_type": "bert", "vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64,
        "quantization": {"group_size": 64, "bits": 8},
    }  # fmt: skip
    whole = Encoder(EncoderArgs.from_dict(config))
    nn.quantize(whole, group_size=64, bits=8)
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = dict(tree_flatten(whole.parameters()))
    mx.save_safetensors(str(tmp_path / "model.safetensors"), weights)
    tokens = mx.array([[1, 2, 3]])
    assert np.array_equal(np.array(loaded(tmp_path)(tokens)), np.array(whole(tokens)))


@pytest.mark.parametrize("length", [100, pytest.param(2048, marks=pytest.mark.slow)])
def test_it_takes_no_more_memory_than_is_predicted(length: int) -> None:
    config = json.loads((DATA / "bert" / "config.json").read_text())
    larger = {"hidden_size": 128, "intermediate_size": 512, "max_position_embeddings": length}
    model = Encoder(EncoderArgs.from_dict(config | larger | {"num_attention_heads": 4}))
    mx.eval(model.parameters())
    mx.disable_compile()  # as a worker does on a CPU: then it takes the most
    mx.clear_cache()
    weights = mx.get_active_memory()
    predicted = encoder_footprint(model, weights).peak_bytes([], [length], 512)
    mx.reset_peak_memory()
    for states in model.states(mx.array([[5] * length])):
        mx.eval(states)
    held, foreseen = mx.get_peak_memory() - weights, predicted - weights
    assert held <= foreseen <= 4 * held


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"position_embedding_type": "relative_key"}, "its kind of positions is not offered"),
        ({"hidden_act": "mish"}, "its activation is not offered: mish"),
        ({"hidden_size": None}, "its config does not say hidden_size"),
    ],
)
def test_what_is_not_offered_is_said(change: dict[str, Any], words: str) -> None:
    config = json.loads((DATA / "bert" / "config.json").read_text()) | change
    with pytest.raises(ValueError, match=words):
        EncoderArgs.from_dict(config)


# -- served


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoder") / "m")


@pytest.fixture(scope="module")
def bench(folder: Path) -> Bench:
    return Bench(folder)


def embed(bench: Bench, **asked: Any) -> Heard:
    (heard,) = bench.run([bench.message(want="embedding", **asked)])
    return heard


def vector_of(heard: Heard) -> Any:
    (vector,) = [piece for piece in heard.pieces if isinstance(piece, Vector)]
    return np.frombuffer(vector.values, "<f4")


def test_a_worker_makes_vectors_as_its_folder_says(bench: Bench, folder: Path) -> None:
    assert not bench.ready.answers
    heard = embed(bench, text="fox dogs server")
    tokens = [2, 4, 5, 8, 6, 3]
    assert unpacked(heard.prompt) == tokens
    states = loaded(folder)(mx.array([tokens]))
    assert np.allclose(vector_of(heard), np.array(states[0, 0]), atol=1e-6)
    assert (heard.started, heard.begun, heard.ended.prompt_tokens) == (1, 1, 6)


def test_one_that_is_cut_keeps_its_last_mark(bench: Bench) -> None:
    asked = bench.message(want="embedding", text="fox " * 90, truncate=True)
    (cut,) = bench.run([structs.replace(asked, context=8)])
    assert unpacked(cut.prompt) == [2, 4, 4, 4, 4, 4, 4, 3]
    asked = bench.message(want="embedding", text="fox " * 90)
    (refused,) = bench.run([structs.replace(asked, context=8)])
    assert refused.refused is not None
    assert refused.refused.code == "context_exceeded"
    assert refused.refused.numbers == {"prompt_tokens": 92, "allowed_tokens": 8}


def test_it_produces_no_text(bench: Bench) -> None:
    (heard,) = bench.run([bench.message(text="fox", max_tokens=1)])
    assert heard.refused is not None
    assert (heard.refused.code, heard.refused.message) == (
        "unsupported",
        "this model makes vectors and produces no text",
    )


def test_one_token_shows_that_it_lives(bench: Bench) -> None:
    heard = embed(bench, token_ids=(0,), max_tokens=1)
    assert heard.begun == 1


# -- a decoder that was saved to make vectors


@pytest.mark.parametrize("tied", [True, False])
def test_a_decoder_without_its_outermost_part_is_whole(tmp_path: Path, *, tied: bool) -> None:
    folder = make_model(tmp_path / "m", Shape(extra={"tie_word_embeddings": tied}), seed=3)
    whole = loaded(folder)
    weights: Any = mx.load(str(folder / "model.safetensors"))
    inner = {
        name.removeprefix("model."): array
        for name, array in weights.items()
        if name.startswith("model.")
    }
    mx.save_safetensors(str(folder / "model.safetensors"), inner)
    with pytest.raises(ValueError, match="not in model"):
        loaded(folder)
    (folder / "modules.json").write_text("[]")
    tokens = mx.array([[5, 6, 7]])
    again = loaded(folder)
    assert np.array_equal(np.array(again.model(tokens)), np.array(whole.model(tokens)))
    assert again(tokens).shape == (1, 3, 512)
