"""What is kept of each kind of cache, and given out again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import (
    ArraysCache,
    CacheList,
    ChunkedKVCache,
    ConcatenateKVCache,
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
)

from mlxd.worker.prefix.snapshot import (
    arrays_of,
    can_be_kept,
    can_be_trimmed,
    given,
    holds,
    taken,
)

pytestmark = pytest.mark.mlx

KINDS: dict[str, Callable[[], Any]] = {
    "full": KVCache,
    "quantised": lambda: QuantizedKVCache(group_size=32),
    "window": lambda: RotatingKVCache(max_size=20),
    "window with a head": lambda: RotatingKVCache(max_size=20, keep=4),
    "chunk": lambda: ChunkedKVCache(30),
    "state": lambda: ArraysCache(2),
    "two": lambda: CacheList(KVCache(), KVCache()),
    "state and window": lambda: CacheList(ArraysCache(1), RotatingKVCache(max_size=20)),
}


def rows(start: int, count: int) -> mx.array:
    """Of tokens that tell which they are."""
    numbers = mx.arange(start, start + count, dtype=mx.float32).reshape(1, 1, -1, 1)
    return mx.broadcast_to(numbers, (1, 2, count, 32))


def read(cache: Any, start: int, count: int) -> list[Any]:
    """As a layer does with so many tokens; what it sees then."""
    if isinstance(cache, CacheList):
        return [seen for one in cache.caches for seen in read(one, start, count)]
    if isinstance(cache, ArraysCache):
        for n, state in enumerate(cache.cache):
            was = 0 if state is None else state
            cache[n] = mx.full((1, 5), float(start + count)) + was
        return list(cache.cache)
    if isinstance(cache, ChunkedKVCache):
        cache.maybe_trim_front()
    seen = cache.update_and_fetch(rows(start, count), rows(start, count))
    return list(seen) if not isinstance(cache, QuantizedKVCache) else [*seen[0], *seen[1]]


def same(one: list[Any], other: list[Any]) -> bool:
    return all(bool(mx.array_equal(a, b)) for a, b in zip(one, other, strict=True))


def in_order(array: mx.array) -> mx.array:
    """A window sees its tokens in any order, and may have some that it does not look at."""
    return mx.sort(array, axis=-2)[..., -19:, :] if array.ndim > 2 else array


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("chunks", [(5,), (17, 1, 1), (40,), (30, *[1] * 9), (9, 300, 2)])
def test_what_is_given_goes_on_as_what_was_taken(kind: str, chunks: tuple[int, ...]) -> None:
    cache, at = KINDS[kind](), 0
    for count in chunks:
        read(cache, at, count)
        at += count
    kept = taken([cache])
    mx.eval(arrays_of(kept))
    assert holds(kept, at)
    assert can_be_kept(kept)
    for further in ((1, 1), (7, 1), (30,)):
        going_on, given_out = given([cache], at), given(kept, at)
        place = at
        for count in further:
            seen = [read(caches[0], place, count) for caches in (going_on, given_out)]
            assert same(*[[in_order(array) for array in each] for each in seen])
            place += count
    assert same(arrays_of(kept), arrays_of(taken([cache])))


def test_no_more_is_kept_than_the_tokens_need() -> None:
    for kind, most in {"full": 300, "quantised": 300, "window": 20, "chunk": 300}.items():
        cache = KINDS[kind]()
        read(cache, 0, 300)
        kept = arrays_of(taken([cache]))
        assert max(array.shape[-2] for array in kept) <= most
        assert max(array.shape[-2] for array in arrays_of([cache])) > most


@pytest.mark.parametrize("kind", ["full", "quantised", "two"])
def test_a_part_of_full_layers_is_what_fewer_tokens_leave(kind: str) -> None:
    long, short = KINDS[kind](), KINDS[kind]()
    read(long, 0, 300)
    read(short, 0, 123)
    part = given(taken([long]), 123)
    assert can_be_trimmed([long])
    assert holds(part, 123)
    assert same(read(part[0], 123, 5), read(short, 123, 5))


def test_kinds_that_are_not_known_are_not_kept() -> None:
    assert not can_be_kept([KVCache(), ConcatenateKVCache()])
    assert not can_be_kept([])
    assert can_be_kept([KVCache(), CacheList(ArraysCache(1), KVCache())])
    for kind in ("window", "chunk", "state", "state and window"):
        assert not can_be_trimmed([KVCache(), KINDS[kind]()])


def test_a_layer_that_has_seen_nothing_says_nothing() -> None:
    """Some models have such layers."""
    used, unused = KVCache(), KVCache()
    read(used, 0, 50)
    kept = taken([used, unused])
    assert holds(kept, 50)
    assert not holds(kept, 49)
    assert given(kept, 30)[1].empty()
