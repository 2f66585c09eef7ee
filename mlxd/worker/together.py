"""Which sequences can share a model's steps: tried out, since caches that merge do not tell what
the model makes of them, nor of padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import cached_property
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.generate import PromptProcessingBatch
from mlx_lm.models.cache import make_prompt_cache

from mlxd.core.footprint import Sharing
from mlxd.worker.allocator import is_exhaustion
from mlxd.worker.machine import has_gpu
from mlxd.worker.sampling import greedy

_LONG, _SHORT = 3, 1
"""Tokens of the prompts. On a CPU each takes as long as a step."""
_ROWS = (_LONG, _SHORT, _SHORT)
"""Three: a mask of two rows would pass for one of two heads."""
_ON_GPU = {mx.float32: 0.002, mx.float16: 0.2, mx.bfloat16: 0.2}
"""How far off rows may be, in parts of how far their numbers lie apart. What a GPU computes in
other company differs in the last digits (float32 has ten bits there), and in half precision that
turns which experts tokens go to in one of many layers. Padding that counts is 0.5 to 1.6.
"""
_ON_CPU = {mx.float32: 0.0005, mx.float16: 0.005, mx.bfloat16: 0.0125}
"""There company changes nothing, but where a model has two formulas for the same."""


def sharing(model: Any, vocabulary: int) -> Sharing:
    """There are models that take one row alone (gemma2 has masks that fit no padding, gpt_bigcode
    positions that are one number), that count padding as text while they decode (afm7), or only
    while they read (most with states: mamba, jamba, recurrent_gemma).
    """
    if not all(hasattr(cache, "merge") for cache in make_prompt_cache(model)):
        return "none"
    most = _rounding(model)
    trials = [_Trial(model, _text(n, vocabulary)) for n in range(2)]
    # Rounding may turn which expert a token goes to, but hardly in both texts.
    if not any(trial.decoded() <= most for trial in trials):
        return "none"
    # Padding may count and hardly show in one of them: more than nothing is looked at twice.
    off = trials[0].read()
    if 0 < off <= most:
        off = max(off, trials[1].read())
    return "any" if off <= most else "like"


def _text(n: int, vocabulary: int) -> list[int]:
    """A long prompt and what follows it, from all over the table: the tokens at its ends may be
    like no others.
    """
    count = _LONG + 1
    return [(vocabulary * (2 * i + 1) // (2 * count) + n) % vocabulary for i in range(count)]


class _Trial:
    """A long prompt and short ones, of each of which one token more is said."""

    def __init__(self, model: Any, text: Sequence[int]) -> None:
        self._model = model
        self._text = text

    def decoded(self) -> float:
        """How far what they say together is from what each says alone; infinite: they cannot."""
        return self._off(lambda: self._batch([deepcopy(self._alone[n]) for n in _ROWS]))

    def read(self) -> float:
        """The same, where they are read together, too."""

        def batch() -> Any:
            fresh = self._batch([make_prompt_cache(self._model) for _ in _ROWS])
            fresh.prompt([list(self._text[:length]) for length in _ROWS])
            return fresh

        return self._off(batch)

    @cached_property
    def _alone(self) -> dict[int, list[Any]]:
        """The caches of each length."""
        return {length: self._read(self._text[:length]) for length in (_LONG, _SHORT)}

    @cached_property
    def _wanted(self) -> dict[int, mx.array]:
        return {n: self._said(1, deepcopy(caches))[0] for n, caches in self._alone.items()}

    def _off(self, batch: Callable[[], Any]) -> float:
        wanted = self._wanted
        try:
            rows = batch()
            found = self._said(len(_ROWS), rows.prompt_cache)
            rows.extract_cache(0)  # as at an answer's end
        except Exception as error:
            if is_exhaustion(error):
                raise
            return float("inf")
        return max(_apart(row, wanted[n]) for row, n in zip(found, _ROWS, strict=True))

    def _batch(self, caches: list[Any]) -> Any:
        rows = list(range(len(caches)))
        return PromptProcessingBatch(self._model, rows, caches, fallback_sampler=greedy)

    def _read(self, tokens: Sequence[int]) -> list[Any]:
        caches: list[Any] = make_prompt_cache(self._model)
        self._model(mx.array([list(tokens)]), cache=caches)
        mx.eval([cache.state for cache in caches])
        return caches

    def _said(self, rows: int, caches: list[Any]) -> mx.array:
        """What follows the last token, in each row."""
        last = mx.array([[self._text[-1]]] * rows)
        logits: mx.array = self._model(last, cache=caches)[:, -1].astype(mx.float32)
        mx.eval(logits)
        return logits


def _apart(found: mx.array, wanted: mx.array) -> float:
    """Of numbers alone: a model may rule tokens out, or say nothing that is one."""
    known = mx.isfinite(wanted)
    wanted = mx.where(known, wanted, 0)
    off = mx.linalg.norm(mx.where(known, found - wanted, 0))
    spread = mx.linalg.norm(wanted - mx.mean(wanted))
    apart: float = mx.where(spread > 0, off / spread, off).item()  # type: ignore[assignment]
    return apart


def _rounding(model: Any) -> float:
    allowed = _ON_GPU if has_gpu() else _ON_CPU
    kinds = {weight.dtype for _, weight in tree_flatten(model.parameters())}
    return max((allowed[kind] for kind in kinds if kind in allowed), default=0.0)
