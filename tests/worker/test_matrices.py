"""Weights that lie otherwise: what is computed with them stays the same to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm.utils
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tuner.dora import DoRALinear

from mlxd.worker.loading import load
from mlxd.worker.machine import has_reference_blas
from mlxd.worker.matrices import lay_out
from tests.support.encoder_maker import DATA
from tests.support.model_maker import MOE, Shape, make_model

pytestmark = [
    pytest.mark.mlx,
    pytest.mark.skipif(not has_reference_blas(), reason="nothing is laid out here"),
]

UNTIED = Shape(spread=1.5, extra={"tie_word_embeddings": False})
SHAPES = {
    "tied": Shape(spread=1.5),
    "with a head": UNTIED,
    "with biases": Shape(spread=1.5, model_type="qwen2"),
    "a mixture": MOE,
    "no multiple of what is copied at once": Shape(spread=1.5, intermediate=150),
}
VOCABULARY = Shape().vocab
LITTLE = 2**13
"""Bytes: less than a matrix has here, and more than what else there is in the process may take."""


def opened(folder: Path) -> Any:
    model, _ = mlx_lm.utils.load_model(folder)
    return model


def lies_by_column(weight: mx.array) -> bool:
    return np.asarray(weight).strides[-1] > weight.itemsize


def by_column(model: Any) -> set[str]:
    """Names of its matrices whose columns lie in one piece."""
    named = tree_flatten(model.parameters())
    return {name for name, weight in named if weight.ndim > 1 and lies_by_column(weight)}


@pytest.mark.parametrize("name", SHAPES)
def test_logits_are_the_same_to_the_last_bit(name: str, tmp_path: Path) -> None:
    make_model(tmp_path, SHAPES[name])
    usual, other = opened(tmp_path), opened(tmp_path)
    lay_out(other, VOCABULARY)
    caches = make_prompt_cache(usual), make_prompt_cache(other)
    for tokens in (mx.arange(1, 121).reshape(3, 40), mx.array([[7], [8], [9]])):
        one, two = (m(tokens, cache=c) for m, c in zip((usual, other), caches, strict=True))
        assert mx.array_equal(one, two)


@pytest.mark.parametrize("name", SHAPES)
def test_all_matrices_without_a_bias_lie_by_column(name: str, tmp_path: Path) -> None:
    make_model(tmp_path, SHAPES[name])
    model = opened(tmp_path)
    assert not by_column(model)
    lay_out(model, VOCABULARY)
    parameters = dict(tree_flatten(model.parameters()))
    wanted = {
        key
        for key, weight in parameters.items()
        if weight.ndim > 1 and key.replace("weight", "bias") not in parameters
    }
    if "lm_head.weight" in wanted:
        wanted.discard("model.embed_tokens.weight")
    assert by_column(model) == wanted


def test_a_model_is_loaded_so_and_half_precision_is_left(tmp_path: Path) -> None:
    make_model(tmp_path / "float", Shape())
    assert by_column(load(tmp_path / "float").model)
    make_model(tmp_path / "half", Shape(dtype="float16"))
    assert not by_column(load(tmp_path / "half").model)


def test_of_an_encoder_no_table_is_turned() -> None:
    model = load(DATA / "bert").model
    assert not {name for name in by_column(model) if "embeddings" in name}


class Tables(nn.Module):  # type: ignore[misc]
    """One of tokens that is the head, one of places, one of another width."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(500, 64), nn.Embedding(100, 64)
        self.apart, self.inner = nn.Embedding(500, 96), nn.Linear(64, 32, bias=False)


def test_only_the_table_that_is_the_head_is_turned() -> None:
    model = Tables()
    lay_out(model, 500)
    assert by_column(model) == {"tokens.weight", "inner.weight"}


def test_a_matrix_that_two_layers_have_stays_one(tmp_path: Path) -> None:
    make_model(tmp_path, UNTIED)
    model = opened(tmp_path)
    model.lm_head.weight = model.model.embed_tokens.weight
    before = mx.get_active_memory()
    lay_out(model, VOCABULARY)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert lies_by_column(model.lm_head.weight)
    assert abs(mx.get_active_memory() - before) < LITTLE


def test_one_that_a_layer_with_a_bias_has_too_stays_as_it_is() -> None:
    class Sharing(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(8, 8, bias=False), nn.Linear(8, 8)
            self.one.weight = self.other.weight

    model = Sharing()
    lay_out(model, 0)
    assert not by_column(model)


def test_one_matrix_is_held_twice_at_a_time() -> None:
    layers = nn.Sequential(*(nn.Linear(256, 256, bias=False) for _ in range(8)))
    mx.eval(layers.parameters())
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    lay_out(layers, 0)
    assert abs(mx.get_active_memory() - before) < LITTLE
    assert mx.get_peak_memory() - before < 2 * 256 * 256 * 4


def test_a_layer_whose_weights_are_summed_at_each_step_stays_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False))
    model.layers[0] = DoRALinear.from_base(model.layers[0])
    lay_out(model, 0)
    assert not lies_by_column(model.layers[0].linear.weight)
    assert lies_by_column(model.layers[1].weight)
