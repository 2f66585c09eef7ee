"""Weights that lie otherwise: what is computed with them stays the same to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm.utils
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

from mlxd.worker.loading import load
from mlxd.worker.matrices import lay_out
from tests.support.model_maker import MOE, Shape, make_model

pytestmark = pytest.mark.mlx

SHAPES = {
    "tied": Shape(spread=1.5),
    "with a head": Shape(spread=1.5, extra={"tie_word_embeddings": False}),
    "with biases": Shape(spread=1.5, model_type="qwen2"),
    "a mixture": MOE,
}


def opened(folder: Path) -> Any:
    model, _ = mlx_lm.utils.load_model(folder)
    return model


def by_column(model: Any) -> set[str]:
    """Names of its matrices whose columns lie in one piece."""
    return {
        name
        for name, weight in tree_flatten(model.parameters())
        if weight.ndim > 1 and np.asarray(weight).strides[-1] > weight.itemsize
    }


@pytest.mark.parametrize("name", SHAPES)
def test_logits_are_the_same_to_the_last_bit(name: str, tmp_path: Path) -> None:
    make_model(tmp_path, SHAPES[name])
    usual, other = opened(tmp_path), opened(tmp_path)
    lay_out(other)
    caches = make_prompt_cache(usual), make_prompt_cache(other)
    for tokens in (mx.arange(1, 41)[None], mx.array([[7]])):
        one, two = (m(tokens, cache=c) for m, c in zip((usual, other), caches, strict=True))
        assert mx.array_equal(one, two)


@pytest.mark.parametrize("name", SHAPES)
def test_all_matrices_without_a_bias_lie_by_column(name: str, tmp_path: Path) -> None:
    make_model(tmp_path, SHAPES[name])
    model = opened(tmp_path)
    assert not by_column(model)
    lay_out(model)
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
