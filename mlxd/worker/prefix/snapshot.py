"""What is kept of the caches of one sequence, and how it is given out again.

An `mx.array` object can be written to (`a[...] = b` makes it name other memory), the memory that it
names cannot: while another object names the same, a write goes to a copy. So what is kept and what
is given out share memory, and never an object.

Two kinds of layers. In *full* ones each token has a place of its own: a part of them is what would
have been kept of fewer tokens. All others (windows, recurrent states, chunks) are right for exactly
the tokens that they have seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models.cache import (
    ArraysCache,
    CacheList,
    ChunkedKVCache,
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
)

from mlxd.worker.stand_ins import leaves

Caches: TypeAlias = Sequence[Any]
"""Of one sequence, a layer each, as mlx-lm's `make_prompt_cache` makes them."""
_FULL = (KVCache, QuantizedKVCache)
_EXACT = (RotatingKVCache, ArraysCache, ChunkedKVCache)


def can_be_kept(caches: Caches) -> bool:
    """Whether all of a model's layers are of kinds that are known here."""
    return bool(caches) and all(type(leaf) in (*_FULL, *_EXACT) for leaf in leaves(caches))


def can_be_trimmed(caches: Caches) -> bool:
    """Whether all are full, so that a part of what is kept serves."""
    return all(type(leaf) in _FULL for leaf in leaves(caches))


def holds(caches: Caches, length: int) -> bool:
    """Whether they have seen so many tokens, as far as they tell."""
    tell = [leaf for leaf in leaves(caches) if hasattr(leaf, "offset") and not leaf.empty()]
    return all(leaf.offset == length for leaf in tell)


def taken(caches: Caches) -> list[Any]:
    """A copy with arrays of its own, no longer than the tokens need. Nothing is computed yet."""
    return _each(caches, _compact)


def given(caches: Caches, length: int) -> list[Any]:
    """The caller's own: with the same memory, cut to so many tokens."""

    def cut(leaf: Any) -> Any:
        if type(leaf) not in _FULL or leaf.empty():
            return _changed(leaf, mx.array)
        part = _changed(leaf, lambda array: _first(array, length))
        part.offset = length
        return part

    return _each(caches, cut)


def part_of(caches: Caches, length: int) -> list[Any]:
    """To be kept as well: of full layers alone, and with the very same arrays."""

    def part(leaf: Any) -> Any:
        one = _twin(leaf)
        one.offset = 0 if leaf.empty() else length
        return one

    return _each(caches, part)


def rest_on(longer: Caches, shorter: Caches) -> None:
    """Have the full layers of `shorter` use the arrays of `longer`, which begins with it."""
    for base, leaf in _full_pairs(longer, shorter):
        leaf.keys, leaf.values = base.keys, base.values


def rests_on(longer: Caches, shorter: Caches) -> bool:
    return any(base.keys is leaf.keys for base, leaf in _full_pairs(longer, shorter))


def is_its_own(caches: Caches, length: int) -> bool:
    """Whether the arrays of its full layers have no more than so many tokens."""
    return any(_tokens(leaf) == length for leaf in _full(caches))


def stand_alone(caches: Caches) -> None:
    """Give their full layers arrays of their own, no longer than the tokens need."""
    for leaf in _full(caches):
        leaf.keys, leaf.values = tree_map(_compactly(leaf.offset), (leaf.keys, leaf.values))


def arrays_of(caches: Caches) -> list[mx.array]:
    """Each once."""
    found = [array for leaf in leaves(caches) for array in _arrays(leaf)]
    return list({id(array): array for array in found}.values())


def _each(caches: Caches, change: Callable[[Any], Any]) -> list[Any]:
    def one(cache: Any) -> Any:
        if not isinstance(cache, CacheList):
            return change(cache)
        many = _twin(cache)
        many.caches = tuple(_each(cache.caches, change))
        return many

    return [one(cache) for cache in caches]


def _twin(cache: Any) -> Any:
    """As `copy.copy`, in a tenth of the time."""
    other = object.__new__(type(cache))
    other.__dict__.update(cache.__dict__)
    return other


def _changed(leaf: Any, change: Callable[[mx.array], mx.array]) -> Any:
    """A copy with other arrays. Of one sequence neither padding nor lengths are known."""
    other = _twin(leaf)
    if isinstance(leaf, ArraysCache):
        other.cache = [None if array is None else change(array) for array in leaf.cache]
        other.left_padding = other.lengths = None
    elif isinstance(leaf.keys, mx.array):  # most are, and each layer of each prompt comes here
        other.keys, other.values = change(leaf.keys), change(leaf.values)
    elif not leaf.empty():
        other.keys, other.values = tree_map(change, (leaf.keys, leaf.values))
    return other


def _compact(leaf: Any) -> Any:
    match leaf:
        case RotatingKVCache() if not leaf.keep and not leaf.empty():
            seen = leaf.size()
            window = _changed(
                leaf, lambda array: mx.contiguous(leaf._temporal_order(array)[..., -seen:, :])
            )
            window._idx = seen
            return window
        case ChunkedKVCache():
            return _changed(leaf, _compactly(leaf.offset - leaf.start_position))
        case KVCache() | QuantizedKVCache():
            return _changed(leaf, _compactly(leaf.offset))
        case _:
            return _changed(leaf, mx.contiguous)


def _compactly(length: int) -> Callable[[mx.array], mx.array]:
    return lambda array: mx.contiguous(array[..., :length, :])


def _first(array: mx.array, length: int) -> mx.array:
    return array[..., :length, :] if array.shape[-2] > length else mx.array(array)


def _full(caches: Caches) -> list[Any]:
    return [leaf for leaf in leaves(caches) if type(leaf) in _FULL and not leaf.empty()]


def _tokens(leaf: Any) -> int:
    _, array = tree_flatten(leaf.keys)[0]
    length: int = array.shape[-2]
    return length


def _full_pairs(one: Caches, other: Caches) -> Iterator[tuple[Any, Any]]:
    return zip(_full(one), _full(other), strict=True)


def _arrays(leaf: Any) -> list[mx.array]:
    if isinstance(leaf, ArraysCache):
        tree = leaf.cache
    elif isinstance(leaf.keys, mx.array):
        return [leaf.keys, leaf.values]
    else:
        tree = [leaf.keys, leaf.values]
    return [array for _, array in tree_flatten(tree) if array is not None]
