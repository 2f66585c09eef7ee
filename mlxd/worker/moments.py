"""When a step holds most, and how that grows with the batch: found by looking, not by running.

The step is recorded for a few sizes; what is held at each of its operations grows with the rows,
and is linear in tokens of the chunk and in tokens in the caches, each apart. So two sizes of each
tell it for all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache
from numpy.typing import NDArray

from mlxd.core.dimensions import SCAN_BLOCK
from mlxd.core.footprint import LayerGroup, Moment
from mlxd.worker.stand_ins import Size, arrays_of, hold, stand_ins
from mlxd.worker.tape import Tape, record

Step = Callable[[Any, list[Any], mx.array], "mx.array | None"]
"""Of (model, caches, tokens): changes the caches; what it returns is evaluated with them."""
_ROWS = 2
_LENGTHS = (2304, 3072)
_SEEN = (1280, 1536)
_CHUNKS = (512, 1024)
_FIRST_CHUNKS = (512, 1024, 1536)
_SHORT_CHUNKS = (36, 52)
"""To see whether a longer chunk takes more operations; enough tokens that those of two rows are
sorted by their experts, as more are."""
_USUAL = tuple(
    Size(1, chunk, length, min(length, seen + chunk))
    for chunk in (64, 512, 2048)
    for length in (256, 1024, 4096, 32768)
    for seen in (128, 1024)
    if chunk <= length
)
"""Sizes at which each moment that is kept holds more than all others."""
_FIELDS = {
    "": "row", "c": "token", "s": "key", "cs": "pair", "w": "window_key", "cw": "window_pair",
}  # fmt: skip


def first_moments(model: Any, groups: Sequence[LayerGroup]) -> tuple[Moment, ...]:
    """Of the first chunk of prompts; its tokens see each other.

    None where a chunk is worked through in blocks: three records of different lengths do not make
    a parabola.
    """
    caches = make_prompt_cache(model)
    tapes = [_tape(_prefill, model, caches, Size(_ROWS, c, c, c)) for c in _FIRST_CHUNKS]
    if _block(tapes):
        return ()
    cached = np.array([[_cached(groups, Size(_ROWS, c, c, c))] for c in _FIRST_CHUNKS])
    powers = np.vander(_FIRST_CHUNKS, increasing=True).astype(np.float64)
    row, token, pair = np.linalg.solve(powers, (_aligned(tapes) - cached) / _ROWS)
    alike = [Size(1, chunk, chunk, chunk) for chunk in (64, 256, 512, 1024, 2048)]
    return _highest({"": row, "c": token, "cs": pair}, alike, block=0)


def prefill_moments(
    model: Any, caches: Sequence[Any], groups: Sequence[LayerGroup]
) -> tuple[Moment, ...]:
    """Of a chunk of prompts; their logits are never asked for."""
    return _moments(_prefill, model, caches, groups, _CHUNKS)


def scan_moments(
    model: Any, caches: Sequence[Any], groups: Sequence[LayerGroup]
) -> tuple[Moment, ...]:
    """As `prefill_moments`, where a chunk's tokens are taken in one by one.

    Two records of different lengths are not alike; only how much they hold at most is compared.
    """
    axes = (_SHORT_CHUNKS, _LENGTHS, (0,))
    sizes = [Size(_ROWS, chunk, length, length) for chunk, length, _ in product(*axes)]
    most = [
        max(_tape(_prefill, model, caches, size).heights()) - _cached(groups, size)
        for size in sizes
    ]
    table = np.array(most, dtype=np.float64).reshape(2, 2, 1, 1) / _ROWS
    return (_moment(_coefficients(table, axes), 0, 0),)


def decode_moments(
    model: Any, caches: Sequence[Any], groups: Sequence[LayerGroup]
) -> tuple[Moment, ...]:
    """Of one token for each row, which makes the caches grow."""
    return _moments(_decode, model, caches, groups, (1,))


def start_moments(
    model: Any, caches: Sequence[Any], groups: Sequence[LayerGroup]
) -> tuple[Moment, ...]:
    """Of the first token after a prefill, for which rows are copied out of their batch."""
    if not _can_join(caches):
        return ()
    return _moments(_start, model, caches, groups, (1,))


def join_moments(
    model: Any, caches: Sequence[Any], groups: Sequence[LayerGroup]
) -> tuple[Moment, ...]:
    """Of the first token after a row has joined the others, for which all are copied."""
    if not _can_join(caches):
        return ()
    return _moments(_join, model, caches, groups, (1,))


def _prefill(model: Any, caches: list[Any], tokens: mx.array) -> None:
    model(tokens, cache=caches)


def _decode(model: Any, caches: list[Any], tokens: mx.array) -> mx.array:
    logits: mx.array = model(tokens, cache=caches)
    return mx.argmax(logits[:, -1, :], axis=-1)


def _start(model: Any, caches: list[Any], tokens: mx.array) -> mx.array:
    for cache in caches:
        _pick(cache, mx.array(list(range(tokens.shape[0]))))
    return _decode(model, caches, tokens)


def _pick(cache: Any, rows: mx.array) -> None:
    """As `filter`, but for the look at the padding that it takes."""
    if hasattr(cache, "caches"):
        for part in cache.caches:
            _pick(part, rows)
    elif hasattr(cache, "cache"):
        cache.cache = [None if array is None else array[rows] for array in cache.cache]
    else:
        cache.keys, cache.values = cache.keys[rows], cache.values[rows]


def _can_join(caches: Sequence[Any]) -> bool:
    return all(hasattr(cache, "merge") for cache in caches)


def _join(model: Any, caches: list[Any], tokens: mx.array) -> mx.array:
    half = len(caches) // 2
    for running, joining in zip(caches[:half], caches[half:], strict=True):
        running.extend(joining)
    return _decode(model, caches[:half], tokens)


def _block(tapes: Sequence[Tape]) -> int:
    """Tokens that are worked through together, where a longer chunk takes more operations."""
    alike = len({len(tape.operations) for tape in tapes}) == 1
    return 0 if alike else SCAN_BLOCK


def is_parallel(model: Any, caches: Sequence[Any]) -> bool:
    """Whether the number of operations stays, however long the chunk."""
    sizes = [Size(2, chunk, 64, 64) for chunk in _SHORT_CHUNKS]
    counts = {len(_tape(_prefill, model, caches, size).operations) for size in sizes}
    return len(counts) == 1


def _tape(step: Step, model: Any, caches: Sequence[Any], size: Size) -> Tape:
    batch = _join_batch(caches, size) if step is _join else stand_ins(caches, size)

    def traced(tokens: mx.array, *arrays: mx.array) -> list[mx.array]:
        hold(batch, iter(arrays))
        result = step(model, batch, tokens)
        left = arrays_of(batch[: len(batch) // 2] if step is _join else batch)
        return left if result is None else [result, *left]

    tokens = mx.zeros((size.rows, size.chunk), mx.int32)
    return record(traced, [tokens, *arrays_of(batch)])


def _join_batch(caches: Sequence[Any], size: Size) -> list[Any]:
    """All rows but one, then that one, which is longer."""
    running = Size(size.rows - 1, 1, size.length - 64, size.seen - 64)
    return [*stand_ins(caches, running), *stand_ins(caches, Size(1, 1, size.length, size.seen))]


def _moments(
    step: Step,
    model: Any,
    caches: Sequence[Any],
    groups: Sequence[LayerGroup],
    chunks: tuple[int, ...],
) -> tuple[Moment, ...]:
    windows = len(chunks) > 1 and any(group.window for group in groups)
    axes = (chunks, _LENGTHS, _SEEN if windows else (0,))
    rows = _ROWS + (step is _join)
    sizes = [Size(rows, chunk, length, seen or length) for chunk, length, seen in product(*axes)]
    tapes = [_tape(step, model, caches, size) for size in sizes]
    block = _block(tapes) if chunks is _CHUNKS else 0
    table = _aligned(tapes) - np.array([[_cached(groups, size)] for size in sizes])
    shaped = table.reshape(*map(len, axes), table.shape[1]) / rows
    usual = _USUAL if len(chunks) > 1 else [replace(size, chunk=1) for size in _USUAL]
    return _highest(_coefficients(shaped, axes), usual, block=block)


def _aligned(tapes: Sequence[Tape]) -> NDArray[np.float64]:
    """The most that each tape holds from one landmark to the next.

    A landmark is an operation that all of them have. Where they differ, a chunk is worked through
    token by token, or in blocks, and a longer one takes more operations.
    """
    counts = [Counter(tape.names) for tape in tapes]
    common = {name for name in counts[0] if len({count[name] for count in counts}) == 1}
    rows = []
    for tape in tapes:
        marks = [at for at, name in enumerate(tape.names) if name in common]
        heights = np.array(tape.heights(), dtype=np.float64)
        rows.append(np.maximum.reduceat(heights, [0, *marks[1:]]))
    return np.stack(rows)


def _cached(groups: Sequence[LayerGroup], size: Size) -> int:
    """What the caches hold after the step."""
    return sum(
        group.layers
        * size.rows
        * (group.constant_bytes + group.token_bytes * (size.seen if group.window else size.length))
        for group in groups
    )


def _coefficients(
    table: NDArray[np.float64], axes: Sequence[tuple[int, ...]]
) -> dict[str, NDArray[np.float64]]:
    """Of each product of chunk (c), length (s) and window (w), at each operation, for one row."""
    for axis, levels in enumerate(axes):
        low = np.take(table, 0, axis)
        if len(levels) == 1:
            slope = np.zeros_like(low)
        else:
            slope = (np.take(table, 1, axis) - low) / (levels[1] - levels[0])
        table = np.stack([low - slope * levels[0], slope], axis)
    found = {}
    for index in product((0, 1), repeat=len(axes)):
        found["".join(letter for letter, one in zip("csw", index, strict=True) if one)] = table[
            index
        ]
    return found


def _highest(
    coefficients: dict[str, NDArray[np.float64]], sizes: Sequence[Size], *, block: int
) -> tuple[Moment, ...]:
    """The moments that hold more than the others at one of these sizes."""
    kept: dict[int, None] = {}
    for size in sizes:
        values = {"c": size.chunk, "s": size.length, "w": size.seen}
        total = sum(
            coefficient * np.prod([values[letter] for letter in product_])
            for product_, coefficient in coefficients.items()
        )
        kept[int(np.argmax(total))] = None
    return tuple(dict.fromkeys(_moment(coefficients, at, block) for at in kept))


def _moment(coefficients: dict[str, NDArray[np.float64]], at: int, block: int) -> Moment:
    fields = {
        _FIELDS[product_]: int(np.ceil(coefficient[at]))
        for product_, coefficient in coefficients.items()
        if product_ in _FIELDS
    }
    return Moment(**fields, block=block)
