"""Whether several sequences can share a model's steps: tried out, since caches that merge do not
tell what the model makes of them.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx_lm.generate import PromptProcessingBatch
from mlx_lm.models.cache import make_prompt_cache

from mlxd.worker.allocator import is_exhaustion
from mlxd.worker.sampling import greedy

_UNLIKE = ([0, 0], [0], [0])
"""Prompts of which some are padded. Three: a mask of two rows would pass for one of two heads."""


def batches(model: Any) -> bool:
    """Some are read and decoded together: there are models that take one row alone (gemma2
    has masks that fit no padding, gpt_bigcode positions that are one number).
    """
    if not all(hasattr(cache, "merge") for cache in make_prompt_cache(model)):
        return False
    try:
        _try(model)
    except Exception as error:
        if is_exhaustion(error):
            raise
        return False
    return True


def _try(model: Any) -> None:
    rows = len(_UNLIKE)
    batch: Any = PromptProcessingBatch(
        model,
        list(range(rows)),
        [make_prompt_cache(model) for _ in range(rows)],
        fallback_sampler=greedy,
    )
    batch.prompt([list(tokens) for tokens in _UNLIKE])
    mx.eval(model(mx.array([[0]] * rows), cache=batch.prompt_cache))
