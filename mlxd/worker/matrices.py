"""Weights in the order in which a CPU multiplies them fastest."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx.nn import Embedding, Linear
from mlx_lm.models.switch_layers import SwitchLinear


def lay_out(model: Any) -> None:
    """Have its matrices lie in memory column by column; what they say stays what it is, and what is
    computed with them the same to the last bit.

    On Linux MLX multiplies float32 by the reference BLAS. Where the second factor is transposed, as
    the weights of a linear layer are, `sgemm` takes one dot product after the other; where its rows
    lie in one piece, it goes along these, in a half to a quarter of the time. Both add up a
    number's products in the same order, unless a bias is added as well: such layers stay as they
    are. No more than one matrix is held twice.
    """
    modules = [module for _, module in model.named_modules()]
    linear = [module for module in modules if isinstance(module, Linear)]
    heads = {module.weight.shape for module in linear}
    tied = [
        module
        for module in modules
        if isinstance(module, Embedding) and module.weight.shape not in heads
    ]
    experts = [module for module in modules if isinstance(module, SwitchLinear)]
    for module in (*(one for one in linear if "bias" not in one), *tied, *experts):
        if module.weight.dtype == mx.float32:
            module.weight = _by_column(module.weight)
            mx.eval(module.weight)


def _by_column(weight: mx.array) -> mx.array:
    return mx.contiguous(weight.swapaxes(-1, -2)).swapaxes(-1, -2)
