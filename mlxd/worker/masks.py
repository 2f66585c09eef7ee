"""Which tokens a step may give, for the rows of a batch that something constrains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxd.worker.engine import Constraint

Mask: TypeAlias = NDArray[np.int32]
"""A bit for each token, the low one first."""
ANY = -1
"""A word of a mask in which every token is allowed."""


def masked(logits: mx.array, constraints: Sequence[Constraint | None]) -> mx.array:
    """The logits of the tokens that each row may have; of the others, minus infinity.

    One mask for all rows, made by numpy: MLX would take the bits apart in several steps, each of
    which costs more than this.
    """
    rows, width = logits.shape
    words = np.full((rows, -(-width // 32)), ANY, dtype=np.int32)
    for row, constraint in zip(words, constraints, strict=True):
        if constraint is not None:
            constraint.fill(row)
    bits = np.unpackbits(words.view(np.uint8), axis=1, count=width, bitorder="little")
    return mx.where(mx.array(bits.view(np.bool_)), logits, mx.array(-mx.inf, dtype=logits.dtype))
