"""Caches of keys and values in few bits, where mlx-lm can: without batching."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.generate import maybe_quantize_kv_cache
from mlx_lm.models.cache import make_prompt_cache

GROUPS = (64, 32)
"""Numbers that share a scale; a head's size must be a multiple."""


@dataclass(frozen=True, slots=True)
class QuantisedCache:
    bits: int
    group: int

    def apply(self, cache: list[Any]) -> None:
        """Quantise those layers that are not yet, and can be."""
        maybe_quantize_kv_cache(cache, 0, self.group, self.bits)


def quantised(model: Any, bits: int) -> QuantisedCache:
    """How this model's caches can be quantised: tried out. Raises ValueError, in words."""
    if not any(hasattr(cache, "to_quantized") for cache in make_prompt_cache(model)):
        raise ValueError("this model has no cache of keys and values that could be quantised")
    said = ""
    for group in GROUPS:
        try:
            return _tried(model, QuantisedCache(bits, group))
        except NotImplementedError:
            raise ValueError("a sliding window's cache cannot be quantised") from None
        except ValueError as error:
            said = str(error)
    raise ValueError(f"a head's size fits no group of {GROUPS[0]} or {GROUPS[1]} numbers: {said}")


def _tried(model: Any, kv: QuantisedCache) -> QuantisedCache:
    cache = make_prompt_cache(model)
    for tokens in ([[0, 0]], [[0]]):
        logits = model(mx.array(tokens), cache=cache)
        kv.apply(cache)
        mx.eval(logits, [layer.state for layer in cache])
    return kv
