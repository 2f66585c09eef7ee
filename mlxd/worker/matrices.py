"""Weights in the order in which a CPU multiplies them fastest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.nn import Embedding, Linear
from mlx_lm.models.switch_layers import SwitchLinear

_AT_ONCE = 64
"""Rows that are copied together: all at once take up to three times as long."""
_SUMMED = frozenset(("DoRALinear", "DoRAEmbedding"))
"""Adapters that add a matrix to the weights of the layer in them, at each step."""


def lay_out(model: Any, width: int) -> None:
    """Have its matrices lie in memory column by column; what they say stays what it is, and what is
    computed with them the same to the last bit. `width`: of a row of logits; 0: it makes none.

    On Linux MLX's wheel multiplies float32 by the reference BLAS. Where the second factor is
    transposed, as the weights of a linear layer are, `sgemm` takes one dot product after the other;
    where its rows lie in one piece, it goes along these, in a half to a quarter of the time. Both
    add up a number's products in the same order, unless a bias is added as well: such layers stay
    as they are. One matrix is held twice at a time.
    """
    modules = [module for _, module in model.named_modules()]
    summed = {
        id(inner)
        for module in modules
        if type(module).__name__ in _SUMMED
        for inner in module.children().values()
    }
    weighted = [one for one in modules if isinstance(one.get("weight"), mx.array)]
    sharers: dict[int, list[Any]] = {}
    for module in weighted:
        sharers.setdefault(id(module["weight"]), []).append(module)
    factors = [one for one in weighted if isinstance(one, Linear | SwitchLinear)]
    turning = {id(one) for one in (*factors, *_heads(weighted, width))}
    for several in sharers.values():
        fit = all(id(one) not in summed and "bias" not in one for one in several)
        if fit and any(id(one) in turning for one in several):
            _turn(several)


def _heads(modules: Sequence[Any], width: int) -> list[Any]:
    """Tables of tokens that are the last layer as well."""
    linear = [one["weight"].shape for one in modules if isinstance(one, Linear)]
    if any(shape[0] == width for shape in linear):
        return []
    hidden = {shape[-1] for shape in linear}
    tables = [(one, one["weight"].shape) for one in modules if isinstance(one, Embedding)]
    return [one for one, shape in tables if shape[0] == width and shape[-1] in hidden]


def _turn(sharers: Sequence[Any]) -> None:
    """Layers that have one matrix."""
    weight = sharers[0]["weight"]
    if weight.dtype != mx.float32:
        return
    turned = mx.zeros((*weight.shape[:-2], weight.shape[-1], weight.shape[-2]))
    mx.eval(weight, turned)
    source, target = np.asarray(weight), np.asarray(turned)
    for at in range(0, weight.shape[-2], _AT_ONCE):
        rows = slice(at, at + _AT_ONCE)
        target[..., rows] = source[..., rows, :].swapaxes(-1, -2)
    laid_out = turned.swapaxes(-1, -2)
    for one in sharers:
        one["weight"] = laid_out
