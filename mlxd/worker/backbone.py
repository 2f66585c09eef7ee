"""A model without its head: what it makes of each token, before it names the next one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from mlxd.worker.allocator import is_exhaustion

_PARTS = ("model", "language_model", "transformer", "backbone")
"""What models call that part, or the text model that holds it."""


def backbone_of(model: Any, width: int) -> Any | None:
    """The part of `model` that gives hidden states, called as it is itself; None: it has none that
    can be told apart. `width`: of a row of its logits.

    It is found by trying: the outermost part that takes tokens and caches and gives no logits.
    """
    for part in _parts(model):
        states = _tried(part, model)
        if states is not None and states.shape[-1] != width:
            return part
    return None


def _parts(module: Any) -> Iterator[Any]:
    for name in _PARTS:
        part = getattr(module, name, None)
        if part is not None:
            yield part
            yield from _parts(part)


def _tried(part: Any, model: Any) -> mx.array | None:
    """What it makes of two tokens, if it takes them so."""
    try:
        states = part(mx.array([[0, 0]]), cache=make_prompt_cache(model))
        if not isinstance(states, mx.array) or states.ndim != 3 or states.shape[:2] != (1, 2):
            return None
        mx.eval(states)
    except Exception as error:
        if is_exhaustion(error):
            raise
        return None
    return states
