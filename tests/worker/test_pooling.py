"""One vector of many states, as the model's folder asks."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlxd.worker.pooling import Pool, UnknownRecipe, recipe_of

pytestmark = pytest.mark.mlx

STATES = np.random.default_rng(1).normal(size=(37, 5)).astype(np.float32)
PLACES = np.arange(1, 38, dtype=np.float32)[:, None]
WANTED = {
    "cls": STATES[0],
    "max": STATES.max(axis=0),
    "mean": STATES.mean(axis=0),
    "mean_sqrt_len": STATES.sum(axis=0) / 37**0.5,
    "weightedmean": (STATES * PLACES).sum(axis=0) / PLACES.sum(),
    "lasttoken": STATES[-1],
}


def pooled(*ways: str, chunk: int) -> Any:
    pool = Pool(ways)
    for at in range(0, len(STATES), chunk):
        pool.add(mx.array(STATES[at : at + chunk]))
        mx.eval(pool.arrays)
    return np.array(pool.vector())


@pytest.mark.parametrize("chunk", [1, 10, 64])
@pytest.mark.parametrize("way", WANTED)
def test_every_way_in_any_chunks(way: str, chunk: int) -> None:
    assert np.allclose(pooled(way, chunk=chunk), WANTED[way], atol=1e-6)


def test_several_ways_stand_behind_each_other() -> None:
    wanted = np.concatenate([WANTED["cls"], WANTED["mean"]])
    assert np.allclose(pooled("cls", "mean", chunk=10), wanted, atol=1e-6)


def folder_with(folder: Path, **files: Any) -> Path:
    """Of JSON, by their names with `__` for `/`."""
    for name, value in ({"config.json": {}} | files).items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(value))
    return folder


def module(kind: str, path: str = "") -> dict[str, Any]:
    return {"type": f"sentence_transformers.models.{kind}", "path": path}


def test_a_folder_that_says_nothing_wants_the_mean(tmp_path: Path) -> None:
    assert recipe_of(folder_with(tmp_path)).ways == ("mean",)


@pytest.mark.parametrize(
    ("config", "ways"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, ("mean",)),
        ({"pooling_mode_lasttoken": True, "word_embedding_dimension": 8}, ("lasttoken",)),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, ("cls", "mean")),
        ({"pooling_mode": "max"}, ("max",)),
        ({"pooling_mode": ["mean", "cls"]}, ("cls", "mean")),
    ],
)
def test_a_folder_says_which(tmp_path: Path, config: Any, ways: tuple[str, ...]) -> None:
    assert recipe_of(folder_with(tmp_path, **{"1_Pooling__config.json": config})).ways == ways


def test_further_steps_are_taken_in_order(tmp_path: Path) -> None:
    steps = [module("Transformer"), module("Pooling", "1_Pooling"), module("Dense", "2_Dense"),
             module("Normalize", "3_Normalize")]  # fmt: skip
    dense = {"activation_function": "torch.nn.modules.activation.Tanh"}
    folder = folder_with(
        tmp_path,
        **{
            "modules.json": steps,
            "1_Pooling__config.json": {"pooling_mode": "mean"},
            "2_Dense__config.json": dense,
        },
    )
    weight = np.random.default_rng(2).normal(size=(3, 5)).astype(np.float32)
    weights = {"linear.weight": mx.array(weight), "linear.bias": mx.array([1.0, 0.0, 0.0])}
    mx.save_safetensors(str(folder / "2_Dense" / "model.safetensors"), weights)
    recipe = recipe_of(folder)
    pool = Pool(recipe.ways)
    pool.add(mx.array(STATES))
    wanted = np.tanh(weight @ WANTED["mean"] + np.array([1.0, 0.0, 0.0]))
    assert np.allclose(np.array(recipe.vector(pool)), wanted, atol=1e-5)


def test_a_vector_is_made_one_long_only_before_further_steps(tmp_path: Path) -> None:
    steps = [module("Transformer"), module("Pooling", "1_Pooling"), module("Normalize", "2_N"),
             module("Dense", "3_Dense"), module("Normalize", "4_N")]  # fmt: skip
    files = {
        "modules.json": steps,
        "1_Pooling__config.json": {"pooling_mode": "mean"},
        "3_Dense__config.json": {},
    }
    folder = folder_with(tmp_path, **files)
    weight = np.random.default_rng(2).normal(size=(3, 5)).astype(np.float32)
    mx.save_safetensors(
        str(folder / "3_Dense" / "model.safetensors"), {"linear.weight": mx.array(weight)}
    )
    recipe = recipe_of(folder)
    pool = Pool(recipe.ways)
    pool.add(mx.array(STATES))
    wanted = weight @ (WANTED["mean"] / np.linalg.norm(WANTED["mean"]))
    assert np.allclose(np.array(recipe.vector(pool)), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"modules.json": [module("LSTM", "1_LSTM")]}, "a step that is not offered: LSTM"),
        ({"modules.json": [module("Pooling", "../x")]}, "a folder outside its own"),
        ({"modules.json": 5}, "its modules.json cannot be read"),
        ({"modules.json": [module("Pooling", "1_Pooling")]}, "1_Pooling/config.json cannot be"),
        ({"1_Pooling__config.json": {}}, "its pooling is not offered: none"),
        ({"1_Pooling__config.json": {"pooling_mode": "best"}}, "its pooling is not offered: best"),
        ({"1_Pooling__config.json": {"pooling_mode": 5}}, "its pooling is not offered: 5"),
        ({"1_Pooling__config.json": {"pooling_mode": [["cls"]]}}, "its pooling is not offered"),
        ({"1_Pooling__config.json": []}, "1_Pooling/config.json is no object"),
        (
            {
                "modules.json": [module("Dense", "2_Dense")],
                "2_Dense__config.json": {"activation_function": "torch.nn.GELU"},
            },
            "a step that is not offered: GELU",
        ),
        (
            {"modules.json": [module("Dense", "2_Dense")], "2_Dense__config.json": {}},
            "its 2_Dense/model.safetensors cannot be read",
        ),
        ({"config.json": {"use_bidirectional_attention": True}}, "see what follows them"),
        ({"config.json": {"is_causal": False}}, "see what follows them"),
    ],
)
def test_what_is_not_offered_is_said(tmp_path: Path, files: Any, words: str) -> None:
    with pytest.raises(UnknownRecipe, match=words):
        recipe_of(folder_with(tmp_path, **files))


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "pipe", ["modules.json", "2_Dense/config.json", "2_Dense/model.safetensors"]
)
def test_a_pipe_is_not_waited_for(tmp_path: Path, pipe: str) -> None:
    files = {"modules.json": [module("Dense", "2_Dense")], "2_Dense__config.json": {}}
    folder = folder_with(tmp_path, **files)
    (folder / pipe).unlink(missing_ok=True)
    os.mkfifo(folder / pipe)
    with pytest.raises(UnknownRecipe, match=f"its {pipe} cannot be read"):
        recipe_of(folder)


def test_steps_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    files = {"modules.json": [module("Dense", "2_Dense")], "2_Dense__config.json": {}}
    folder = folder_with(tmp_path, **files)
    path = str(folder / "2_Dense" / "model.safetensors")
    mx.save_safetensors(path, {"linear.weight": mx.zeros((3, 4))})
    pool = Pool(("mean",))
    pool.add(mx.array(STATES))
    with pytest.raises(UnknownRecipe, match="2_Dense takes other vectors"):
        recipe_of(folder).vector(pool)
    mx.save_safetensors(path, {"linear.weight": mx.zeros(3)})
    with pytest.raises(UnknownRecipe, match="other shapes"):
        recipe_of(folder)


def test_a_list_of_steps_that_is_nested_without_end_is_refused(tmp_path: Path) -> None:
    folder = folder_with(tmp_path)
    (folder / "modules.json").write_text("[" * 100_000)
    with pytest.raises(UnknownRecipe, match=r"its modules\.json cannot be read"):
        recipe_of(folder)
