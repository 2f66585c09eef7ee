"""The caches of one sequence as plain values and arrays, and back; held against the model's own.

What is read from a file may be anybody's: it becomes caches only where it is, layer by layer, what
this model's caches are after as many tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import mlx.core as mx
import msgspec
import numpy as np
from mlx_lm.models.cache import (
    ArraysCache,
    CacheList,
    ChunkedKVCache,
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
)

_LONGEST = 2**31
_TOKENS_AXIS = 2
"""Of keys and values, where a cache grows."""
_PLAIN: dict[str, Any] = {
    "bool": np.bool_,
    "uint8": np.uint8,
    "uint16": np.uint16,
    "uint32": np.uint32,
    "uint64": np.uint64,
    "int8": np.int8,
    "int16": np.int16,
    "int32": np.int32,
    "int64": np.int64,
    "float16": np.float16,
    "float32": np.float32,
    "bfloat16": np.uint16,
}
"""What carries each of MLX's types; NumPy has no bfloat16."""


class Array(msgspec.Struct, frozen=True, array_like=True, tag="a"):
    """An array, whose bytes are elsewhere."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Raises KeyError for a type that there is not."""
        return prod(self.shape) * int(np.dtype(_PLAIN[self.dtype]).itemsize)


class Value(msgspec.Struct, frozen=True, array_like=True, tag="v"):
    value: bool | int | float | str | None


class Many(msgspec.Struct, frozen=True, array_like=True, tag="m"):
    items: tuple[Node, ...]


Node: TypeAlias = Array | Value | Many


class Layer(msgspec.Struct, frozen=True, array_like=True):
    """One layer's cache: the name of its class, and its state."""

    kind: str
    state: Node


@dataclass(frozen=True, slots=True)
class Slab:
    """An evaluated array of a cache, and how much of it holds tokens."""

    array: mx.array
    rows: int | None = None
    """Along the axis of tokens; None: all of it is needed."""

    @property
    def described(self) -> Array:
        shape = self.array.shape
        if self.rows is not None:
            shape = (*shape[:_TOKENS_AXIS], self.rows, *shape[_TOKENS_AXIS + 1 :])
        return Array(str(self.array.dtype).rpartition(".")[2], tuple(shape))

    def raw(self) -> memoryview:
        """Its bytes, in order. For any thread: the array is evaluated and never changes."""
        array = self.array
        if array.dtype == mx.bfloat16:
            array = array.view(mx.uint16, stream=mx.cpu)
        plain = np.asarray(array)
        needed = np.ascontiguousarray(plain if self.rows is None else plain[:, :, : self.rows])
        return needed.reshape(-1).view(np.uint8).data


def taken_apart(caches: Sequence[Any]) -> tuple[tuple[Layer, ...], list[Slab]]:
    """Layers, and their arrays in the order in which the layers name them."""
    slabs: list[Slab] = []
    layers = tuple(Layer(type(cache).__name__, _whole(cache, slabs)) for cache in caches)
    return layers, slabs


def arrays_of(layers: Sequence[Layer]) -> Iterator[Array]:
    """All that the layers name, in order."""
    for layer in layers:
        yield from _arrays(layer.state)


def array_of(described: Array, raw: bytearray | memoryview) -> mx.array:
    """Holds a copy of the bytes. For any thread: nothing is left to be evaluated but, for
    bfloat16, another reading of the same bytes, which `Layout.made` has done.
    """
    plain = np.frombuffer(raw, dtype=_PLAIN[described.dtype])
    return mx.array(plain.reshape(described.shape))


class Layout:
    """What the caches of one model are like."""

    def __init__(self, caches: Sequence[Any]) -> None:
        """`caches` have seen a token at least."""
        self._caches = [_shell(cache) for cache in caches]
        self._layers, _ = taken_apart(caches)

    @property
    def known(self) -> bool:
        """Whether all of its caches are of kinds that can be kept on disk."""
        return all(map(_is_known, self._caches))

    def fits(self, layers: Sequence[Layer]) -> bool:
        """Whether these are layers of this model."""
        return len(layers) == len(self._layers) and all(
            layer.kind == own.kind and _alike(layer.state, own.state, grows=_grows(cache))
            for layer, own, cache in zip(layers, self._layers, self._caches, strict=True)
        )

    def made(
        self, layers: Sequence[Layer], arrays: Sequence[mx.array], length: int
    ) -> list[Any] | None:
        """Caches that hold `length` tokens; None: these do not. `layers` fit."""
        left = iter(
            array.view(mx.bfloat16) if described.dtype == "bfloat16" else array
            for described, array in zip(arrays_of(layers), arrays, strict=True)
        )
        caches = [
            type(own).from_state(_state(layer.state, left))
            for layer, own in zip(layers, self._caches, strict=True)
        ]
        pairs = zip(caches, self._caches, strict=True)
        return caches if all(_holds(cache, own, length) for cache, own in pairs) else None


# -- state to nodes and back


def _shell(cache: Any) -> Any:
    """Its class and its settings, without any array."""
    shell = copy.copy(cache)
    if isinstance(cache, CacheList):
        shell.caches = tuple(map(_shell, cache.caches))
    elif isinstance(cache, ArraysCache):
        shell.cache = []
    else:
        shell.keys = shell.values = None
    return shell


def _rows(cache: Any) -> int | None:
    """Tokens that lie in a cache's arrays, where these have room for more behind them."""
    if type(cache) in (KVCache, QuantizedKVCache):
        return int(cache.offset)
    if type(cache) is ChunkedKVCache:
        return int(cache.offset - cache.start_position)
    return None


def _whole(cache: Any, slabs: list[Slab]) -> Node:
    """A cache's state; of a list of caches each by itself, with no more than holds its tokens."""
    if not isinstance(cache, CacheList):
        return _node(cache.state, _rows(cache), slabs)
    named = zip(cache.caches, cache.state, strict=True)
    return Many(tuple(Many((_whole(inner, slabs), Value(name))) for inner, (_, name) in named))


def _node(state: Any, rows: int | None, slabs: list[Slab]) -> Node:
    if isinstance(state, mx.array):
        slabs.append(Slab(state, rows))
        return slabs[-1].described
    if isinstance(state, (list, tuple)):
        return Many(tuple(_node(item, rows, slabs) for item in state))
    return Value(state)


def _arrays(node: Node) -> Iterator[Array]:
    if isinstance(node, Array):
        yield node
    elif isinstance(node, Many):
        for item in node.items:
            yield from _arrays(item)


def _state(node: Node, arrays: Iterator[mx.array]) -> Any:
    match node:
        case Array():
            return next(arrays)
        case Value():
            return node.value
        case Many():
            return [_state(item, arrays) for item in node.items]


# -- whether they fit


def _is_known(cache: Any) -> bool:
    if type(cache) is CacheList:
        return all(type(inner) in (KVCache, RotatingKVCache, ArraysCache) for inner in cache.caches)
    return type(cache) in (KVCache, QuantizedKVCache, RotatingKVCache, ChunkedKVCache, ArraysCache)


def _grows(cache: Any) -> bool:
    return not isinstance(cache, ArraysCache)


def _alike(node: Node, own: Node, *, grows: bool) -> bool:
    match node, own:
        case Many(), Many():
            return len(node.items) == len(own.items) and all(
                _alike(item, other, grows=grows)
                for item, other in zip(node.items, own.items, strict=True)
            )
        case Array(), Array():
            return node.dtype == own.dtype and _same_shape(node.shape, own.shape, grows=grows)
        case Value(), Value():
            return _same_value(node.value, own.value)
        case _:
            return False


def _same_shape(shape: tuple[int, ...], own: tuple[int, ...], *, grows: bool) -> bool:
    """But for the axis of tokens, where there is one."""
    if len(shape) != len(own) or not all(0 <= size < _LONGEST for size in shape):
        return False
    free = {_TOKENS_AXIS} if grows and len(shape) > _TOKENS_AXIS else set()
    pairs = enumerate(zip(shape, own, strict=True))
    return all(axis in free or size == other for axis, (size, other) in pairs)


def _same_value(value: object, own: object) -> bool:
    """Numbers move as tokens come; everything else stays."""
    if type(value) is not type(own):
        return False
    return 0 <= value < _LONGEST if type(value) is int else value == own


def _holds(cache: Any, own: Any, length: int) -> bool:
    """Whether what its numbers say is so."""
    match cache:
        case CacheList():
            pairs = zip(cache.caches, own.caches, strict=True)
            return all(_holds(inner, other, length) for inner, other in pairs)
        case KVCache():
            return bool(cache.offset == length == _least(cache.keys, cache.values))
        case QuantizedKVCache():
            same = (cache.bits, cache.group_size) == (own.bits, own.group_size)
            held = _least(*cache.keys, *cache.values)
            return bool(same and cache.offset == length == held)
        case RotatingKVCache():
            same = (cache.keep, cache.max_size) == (own.keep, own.max_size)
            held = _least(cache.keys, cache.values)
            enough = min(length, cache.max_size) <= held
            return bool(same and cache.offset == length and cache._idx <= held and enough)
        case ChunkedKVCache():
            held = _least(cache.keys, cache.values)
            chunked = cache.chunk_size == own.chunk_size
            return bool(chunked and cache.offset == length == held + cache.start_position)
        case _:
            return True


def _least(*arrays: mx.array) -> int:
    return min(array.shape[_TOKENS_AXIS] for array in arrays)
