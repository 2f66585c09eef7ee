"""Caches of any size that take no memory: their arrays are never evaluated, only looked at."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map, tree_unflatten

_ENDLESS = 1 << 24
"""A window that nothing falls out of."""


@dataclass(frozen=True, slots=True)
class Size:
    """Of a batch, and of the step that it takes next."""

    rows: int
    chunk: int
    length: int
    """Tokens of each row after the step."""
    seen: int
    """The same in layers that keep a window."""


def stand_ins(caches: Sequence[Any], size: Size) -> list[Any]:
    """Batches of the kinds of `caches`, which have seen a token; about to take the step."""
    batch = [_merged(cache, size.rows) for cache in caches]
    for leaf in leaves(batch):
        _resize(leaf, size)
    return batch


def leaves(caches: Sequence[Any]) -> Iterator[Any]:
    """The caches with arrays of their own."""
    for cache in caches:
        if hasattr(cache, "caches"):
            yield from leaves(cache.caches)
        else:
            yield cache


def arrays_of(caches: Sequence[Any]) -> list[mx.array]:
    return [array for leaf in leaves(caches) for _, array in _flat(leaf)]


def hold(caches: Sequence[Any], arrays: Iterator[mx.array]) -> None:
    """Put other arrays in the places of theirs, in the order of `arrays_of`."""
    for leaf in leaves(caches):
        _put(leaf, [(path, next(arrays)) for path, _ in _flat(leaf)])


def is_window(leaf: Any) -> bool:
    return bool(getattr(leaf, "max_size", 0) or getattr(leaf, "chunk_size", 0))


def _merged(cache: Any, rows: int) -> Any:
    if hasattr(cache, "merge"):
        return cache.merge([cache] * rows)
    return copy.deepcopy(cache)


def _tree(leaf: Any) -> Any:
    return leaf.cache if hasattr(leaf, "cache") else [leaf.keys, leaf.values]


def _flat(leaf: Any) -> list[tuple[str, mx.array]]:
    return [(path, array) for path, array in tree_flatten(_tree(leaf)) if array is not None]


def _put(leaf: Any, arrays: Sequence[tuple[str, mx.array]]) -> None:
    if not arrays:
        return
    if hasattr(leaf, "cache"):
        for path, array in arrays:
            leaf.cache[int(path)] = array
    else:
        leaf.keys, leaf.values = tree_unflatten(list(arrays))


def _resize(leaf: Any, size: Size) -> None:
    if hasattr(leaf, "cache"):
        leaf.cache = tree_map(lambda array: _zeros(array, size.rows), leaf.cache)
        if leaf.left_padding is not None:
            leaf.left_padding = mx.array([0] * size.rows)
        return
    before = (size.seen if is_window(leaf) else size.length) - size.chunk
    room = before + size.chunk if is_window(leaf) and size.chunk > 1 else before
    leaf.keys, leaf.values = tree_map(
        lambda array: _zeros(array, size.rows, room), (leaf.keys, leaf.values)
    )
    leaf.step = size.chunk
    if hasattr(leaf, "max_size"):
        leaf.max_size = _ENDLESS
    if hasattr(leaf, "chunk_size"):
        leaf.chunk_size = _ENDLESS
    _move(leaf, size.rows, before)


def _move(leaf: Any, rows: int, tokens: int) -> None:
    """It has seen so many tokens."""
    for name in ("_idx", "_offset"):
        if hasattr(leaf, name):
            setattr(leaf, name, tokens)
    if isinstance(leaf.offset, mx.array):
        leaf.offset = mx.array([tokens] * rows)
        leaf.left_padding = mx.array([0] * rows)
    else:
        leaf.offset = tokens


def _zeros(array: mx.array, rows: int, tokens: int | None = None) -> mx.array:
    shape = (rows, *array.shape[1:])
    if tokens is not None:
        shape = (*shape[:-2], tokens, shape[-1])
    return mx.zeros(shape, array.dtype)
