"""How one vector is made of what a model makes of each token: as its folder says, else the mean.

Folders packed for sentence-transformers say it in modules.json and in a folder for each step.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxd.core import durable

Step = Callable[[mx.array], mx.array]
"""A further step, from vector to vector."""
_POOLING = "1_Pooling"
_MOST_BYTES = 1 << 20
"""Of a file that says what a step does."""
_WAYS = ("cls", "max", "mean", "mean_sqrt_len", "weightedmean", "lasttoken")
"""In the order in which the vectors of several are put together."""
_OLD_NAMES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_ACTIVATIONS: Mapping[str, Step] = {"Identity": lambda vector: vector, "Tanh": mx.tanh}
_SHORTEST = 1e-12
"""No vector is taken for shorter when it is made one long, as in PyTorch."""
_BOTH_WAYS = (("use_bidirectional_attention", True), ("is_causal", False))
"""Marks in the config of a decoder that was made to see the whole text from each token."""


class UnknownRecipe(Exception):
    """The folder asks for something that is not offered; the words are for a client."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a vector is made."""

    ways: tuple[str, ...] = ("mean",)
    steps: tuple[Step, ...] = ()

    def vector(self, pool: Pool) -> mx.array:
        """Raises UnknownRecipe where a step does not fit."""
        vector = pool.vector()
        for step in self.steps:
            vector = step(vector)
        return vector


class Pool:
    """Takes in the states of one text, chunk by chunk."""

    def __init__(self, ways: Sequence[str]) -> None:
        self._ways = ways
        self._tokens = 0
        self._held: dict[str, mx.array] = {}

    def add(self, states: mx.array) -> None:
        """Of shape (tokens, numbers), in float32."""
        before, self._tokens = self._tokens, self._tokens + states.shape[0]
        places = mx.arange(before + 1, self._tokens + 1, dtype=mx.float32)[:, None]
        for way in self._ways:
            held = self._held.get(way)
            match way:
                case "cls":
                    new = states[0] if held is None else held
                case "lasttoken":
                    new = states[-1]
                case "max":
                    new = states.max(axis=0)
                    new = new if held is None else mx.maximum(held, new)
                case _:
                    new = (states * places if way == "weightedmean" else states).sum(axis=0)
                    new = new if held is None else held + new
            self._held[way] = new

    @property
    def arrays(self) -> list[mx.array]:
        """What is held; the states can go once it is evaluated."""
        return list(self._held.values())

    def vector(self) -> mx.array:
        """Of all that was added."""
        count = self._tokens
        parts = {"mean": count, "mean_sqrt_len": math.sqrt(count)}
        parts["weightedmean"] = count * (count + 1) / 2
        return mx.concatenate([self._held[way] / parts.get(way, 1) for way in self._ways])


def recipe_of(folder: Path, *, causal: bool = True) -> Recipe:
    """What the folder says. `causal`: it is a decoder. Raises UnknownRecipe."""
    if causal:
        _check_causal(_object(folder / "config.json"))
    ways: tuple[str, ...] = ("mean",)
    steps: list[Step] = []
    for kind, name in _modules(folder):
        if kind == "Pooling":
            ways = _ways(_object(folder / name / "config.json"))
        elif kind == "Dense":
            steps.append(_dense(folder / name))
        elif kind == "Normalize":
            steps.append(_normalise)
        elif kind != "Transformer":
            raise UnknownRecipe(f"its vectors are made with a step that is not offered: {kind}")
    while steps and steps[-1] is _normalise:  # how long a vector is told to be, an API says
        steps.pop()
    return Recipe(ways, tuple(steps))


def _normalise(vector: mx.array) -> mx.array:
    return vector / mx.maximum(mx.linalg.norm(vector), _SHORTEST)


def _check_causal(config: Mapping[str, Any]) -> None:
    if any(config.get(key) is value for key, value in _BOTH_WAYS):
        raise UnknownRecipe("its tokens see what follows them, which is not offered")


def _modules(folder: Path) -> list[tuple[str, str]]:
    """(kind, folder) of each step, in order."""
    try:
        listed = json.loads(durable.read(folder / "modules.json", _MOST_BYTES))
        found = [(str(one["type"]).rpartition(".")[2], str(one["path"])) for one in listed]
    except FileNotFoundError:
        return [("Pooling", _POOLING)] if (folder / _POOLING).is_dir() else []
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UnknownRecipe("its modules.json cannot be read") from error
    if any(Path(path).name != path for _, path in found):
        raise UnknownRecipe("its modules.json names a folder outside its own")
    return [(kind, path) for kind, path in found if path or kind == "Transformer"]


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(durable.read(path, _MOST_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise UnknownRecipe(f"its {path.parent.name}/{path.name} cannot be read") from error
    if not isinstance(found, dict):
        raise UnknownRecipe(f"its {path.parent.name}/{path.name} is no object")
    return found


def _ways(config: Mapping[str, Any]) -> tuple[str, ...]:
    named = config.get("pooling_mode")
    asked = set(map(str, named)) if isinstance(named, list) else {str(named)} if named else set()
    asked |= {way for key, way in _OLD_NAMES.items() if config.get(key)}
    if not asked or not asked <= set(_WAYS):
        words = ", ".join(sorted(map(str, asked))) or "none"
        raise UnknownRecipe(f"its pooling is not offered: {words}")
    return tuple(way for way in _WAYS if way in asked)


def _dense(folder: Path) -> Step:
    config = _object(folder / "config.json")
    named = str(config.get("activation_function", "Identity")).rpartition(".")[2]
    activation = _ACTIVATIONS.get(named)
    if activation is None:
        raise UnknownRecipe(f"its vectors are made with a step that is not offered: {named}")
    file = folder / "model.safetensors"
    try:
        weights: Any = mx.load(str(file)) if file.is_file() else {}  # a pipe would be waited for
        weight = weights["linear.weight"].astype(mx.float32)
    except (OSError, RuntimeError, KeyError) as error:
        raise UnknownRecipe(f"its {folder.name}/{file.name} cannot be read") from error
    bias = weights.get("linear.bias", mx.zeros(weight.shape[0])).astype(mx.float32)
    if weight.ndim != 2 or bias.shape != weight.shape[:1]:
        raise UnknownRecipe(f"its {folder.name}/{file.name} has other shapes than a step has")

    def step(vector: mx.array) -> mx.array:
        if weight.shape[1:] != vector.shape:
            raise UnknownRecipe(f"its {folder.name} takes other vectors than there are")
        return activation(weight @ vector + bias)

    return step
