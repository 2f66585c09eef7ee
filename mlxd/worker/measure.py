"""What a loaded model's caches take, measured on real ones."""

from __future__ import annotations

import gc
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from mlxd.core.dimensions import Dimensions, computed
from mlxd.core.footprint import Footprint, LayerGroup
from mlxd.core.traces import print_trace
from mlxd.worker.moments import (
    decode_moments,
    first_moments,
    is_parallel,
    join_moments,
    prefill_moments,
    scan_moments,
    start_moments,
)
from mlxd.worker.quantised import GROUP
from mlxd.worker.stand_ins import is_window

RECORD_SECONDS = 2.0
"""Of the processor, for all records of a model: enough for some 40 layers. Whoever waits for a load
waits for them too, and what they tell is learned from use as well."""
_FLOATS = (mx.float32, mx.float16, mx.bfloat16)
_log = logging.getLogger(__name__)


def footprint_of(
    model: Any,
    cache: Sequence[Any],
    weights_bytes: int,
    *,
    fused: bool,
    kv_bits: int = 0,
    known: Footprint | None = None,
    measured: bool = False,
) -> Footprint:
    """`cache` has seen at least one token. `fused`: attention keeps no matrix of scores.

    That is asked only where a step cannot be recorded and nothing is `known`. What is known by an
    earlier load (`measured`) is not recorded again, unless its caches were others.
    """
    groups = groups_of(cache, kv_bits)
    if known is not None and measured and known.groups == groups:
        return replace(known, weights_bytes=weights_bytes)
    if kv_bits:
        cache = [_quantised(layer, kv_bits) for layer in cache]
    if known is not None and known.prefill and not measured:
        estimated = replace(known, weights_bytes=weights_bytes, groups=groups)
    else:
        estimated = _estimated(model, weights_bytes, groups, fused=fused)
    with _no_collection():
        return _recorded(_Hurried(model, RECORD_SECONDS), cache, estimated)


def groups_of(cache: Sequence[Any], kv_bits: int = 0) -> tuple[LayerGroup, ...]:
    """`cache` has seen at least one token."""
    kinds = Counter(kind for layer in cache for kind in _kinds(layer, kv_bits))
    return tuple(
        LayerGroup(layers, token_bytes, window, constant)
        for (token_bytes, window, constant), layers in kinds.items()
    )


class _LateError(Exception):
    """The time for records is over."""


class _Hurried:
    """A model that is not called any more when its time is over."""

    def __init__(self, model: Any, seconds: float) -> None:
        self._model = model
        self._until = time.thread_time() + seconds

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if time.thread_time() > self._until:
            raise _LateError
        return self._model(*arguments, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Records are many small objects without cycles: looking for some takes half of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _recorded(model: Any, cache: Sequence[Any], estimated: Footprint) -> Footprint:
    """With what can be recorded in time in place of what is estimated.

    On a GPU the recorded steps have its own operations, fused ones where it has them.
    """
    found = estimated
    try:
        for more in _records(model, cache, estimated):
            found = more
    except _LateError:
        _log.warning("not all of its steps were recorded in time; the others are estimated")
    except Exception as error:  # noqa: BLE001 - a model's own code, which may refuse to be recorded
        _log.warning("its steps cannot be recorded; they are estimated")
        print_trace(error)
        return estimated
    return found


def _records(model: Any, cache: Sequence[Any], found: Footprint) -> Iterator[Footprint]:
    """One kind of step after the other, prompts first: they take most."""
    groups = found.groups
    if is_parallel(model, cache):
        found = replace(found, prefill=prefill_moments(model, cache, groups))
        yield found
        found = replace(found, first=first_moments(model, groups))
    else:
        scanned = scan_moments(model, cache, groups)
        found = replace(found, prefill=(*found.prefill, *scanned))
    yield found
    found = replace(found, join=join_moments(model, cache, groups))
    yield found
    found = replace(found, decode=decode_moments(model, cache, groups))
    yield found
    yield replace(found, start=start_moments(model, cache, groups))


def _estimated(
    model: Any, weights_bytes: int, groups: tuple[LayerGroup, ...], *, fused: bool
) -> Footprint:
    config = vars(getattr(model, "args", None) or SimpleNamespace())
    text = config.get("text_config")
    sizes = [a.itemsize for _, a in tree_flatten(model.parameters()) if a.dtype in _FLOATS]
    item_bytes = max(set(sizes), key=sizes.count, default=2)
    dimensions = Dimensions.of(config | (text if isinstance(text, dict) else {}), item_bytes)
    return computed(dimensions, weights_bytes, groups, fused=fused)


def _quantised(cache: Any, kv_bits: int) -> Any:
    """As the serial lane keeps it."""
    if is_window(cache) or not hasattr(cache, "to_quantized"):
        return cache
    return cache.to_quantized(group_size=GROUP, bits=kv_bits)


def _kinds(cache: Any, kv_bits: int) -> Iterator[tuple[int, int, int]]:
    """Bytes of a token, window and constant bytes of one layer; a layer may have several caches."""
    if hasattr(cache, "caches"):
        for part in cache.caches:
            yield from _kinds(part, kv_bits)
    elif getattr(cache, "keys", None) is not None:
        window = getattr(cache, "max_size", 0) or getattr(cache, "chunk_size", 0)
        bits = kv_bits if not window and hasattr(cache, "to_quantized") else 0
        yield _token_bytes((cache.keys, cache.values), bits), window, 0
    else:
        yield 0, 0, cache.nbytes


def _token_bytes(pair: Iterable[Any], kv_bits: int) -> int:
    return sum(_row_bytes(part, kv_bits) for array in pair for part in _parts(array))


def _parts(array: Any) -> Sequence[mx.array]:
    return array if isinstance(array, tuple | list) else (array,)


def _row_bytes(array: mx.array, kv_bits: int) -> int:
    """Of one token: arrays are (1, heads, tokens, numbers)."""
    heads, numbers = array.shape[1], array.shape[3]
    if kv_bits:
        scales = 2 * (numbers // GROUP) * array.itemsize
        return heads * (numbers * kv_bits // 8 + scales)
    return heads * numbers * array.itemsize
