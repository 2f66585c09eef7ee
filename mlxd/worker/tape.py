"""What a computation would hold while it runs, read off its graph: nothing of it is run.

MLX walks a graph in order and allocates each result when it hands the operation to the thread (or
the device) that works it out, up to ten tasks of ten dispatches ahead. What an operation has read
is given back when that thread has passed it. So a step holds its live arrays, and all of the last
hundred dispatches beside them; an array that is written in place of its only input costs nothing.
(mlx 0.32: transforms.cpp, eval_impl; backend/cpu/encoder.h.)
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import mlx.core as mx
from mlx_lm.models import gated_delta

_GROUP = 10
"""Dispatches in one task (cpu::DISPATCHES_PER_TASK)."""
_AHEAD = 10
"""Tasks that may be under way (MAX_ACTIVE_TASKS)."""
_WIDTH = 20
"""Operations that are looked at side by side when the order is made (MLX_BFS_MAX_WIDTH)."""
_DISPATCHES = {"SliceUpdate": 2, "Pad": 2, "Convolution": 5}
"""Of operations that take more than one."""
_MULTIPLIES = frozenset(("GatherMM", "GatherQMM", "Matmul", "QuantizedMatmul"))
_FLOAT32 = 4
_FEW = 8
"""Tokens of a scan; more operations than can be under way at a time."""
_NEVER = 1 << 60
_VIEWS = frozenset((
    "AsStrided", "Broadcast", "BroadcastAxes", "Depends", "DynamicSlice", "ExpandDims",
    "Flatten", "Reshape", "Slice", "Split", "Squeeze", "StopGradient", "Transpose", "Unflatten",
    "View",
))  # fmt: skip
_STRIDED = frozenset((
    "AsStrided", "Broadcast", "BroadcastAxes", "DynamicSlice", "Slice", "Split", "Transpose",
))  # fmt: skip
"""Views whose numbers do not lie side by side any more."""
_MERGED = frozenset(("Broadcast", "ExpandDims", "Flatten"))
"""Views that come with each use of an array; the record, which merges what is alike, has one."""
_RESHAPES = frozenset(("Flatten", "Reshape"))
"""Views of what lies side by side; of anything else, copies."""
_IN_PLACE = frozenset((
    "Abs", "Add", "AsType", "BitwiseBinary", "Cos", "Divide", "Equal", "Erf", "ErfInv", "Exp",
    "Expm1", "FloorDivide", "Greater", "GreaterEqual", "Less", "LessEqual", "Log", "Log1p",
    "LogAddExp", "LogicalAnd", "LogicalNot", "LogicalOr", "Maximum", "Minimum", "Multiply",
    "Negative", "NotEqual", "Power", "Remainder", "Select", "Sigmoid", "Sign", "Sin", "Softmax",
    "Sqrt", "Square", "Subtract", "Tanh",
))  # fmt: skip
"""May write over an input that nobody else needs."""


@dataclass(frozen=True, slots=True)
class _Array:
    name: str
    elements: int
    itemsize: int
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return self.elements * self.itemsize


@dataclass(frozen=True, slots=True)
class _Operation:
    name: str
    inputs: tuple[_Array, ...]
    outputs: tuple[_Array, ...]
    axes: tuple[int, ...] = ()
    """Of a transposition."""

    @property
    def tears_rows(self) -> bool:
        """Whether a view leaves matrices whose rows or columns are no longer side by side."""
        shape, made = self.inputs[0].shape, self.outputs[0].shape
        if self.name == "Transpose":
            last = {axis for axis in self.axes[-2:] if shape[axis] > 1}
            return any(axis < len(shape) - 2 for axis in last)
        return self.name == "Slice" and 1 < made[-1] < shape[-1] and made[-2:-1] != (1,)

    @property
    def side_by_side(self) -> bool:
        """Whether a view leaves numbers that lie side by side as they lie."""
        if self.name not in _STRIDED:
            return True
        shape = self.inputs[0].shape
        if self.name == "Transpose":
            moved = [axis for axis in self.axes if shape[axis] > 1]
            return moved == sorted(moved)
        return self.outputs[0].elements == self.inputs[0].elements


@dataclass(frozen=True, slots=True)
class Tape:
    """The operations of one computation, in the order of their evaluation."""

    operations: tuple[_Operation, ...]
    inputs: tuple[_Array, ...]
    """Given to it and not needed by anybody else afterwards."""
    outputs: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        return [operation.name for operation in self.operations]

    def heights(self) -> list[int]:
        """Bytes that are held as each operation starts; the weights are not counted."""
        return _Run(self).heights()


def record(function: Callable[..., list[mx.array]], inputs: Sequence[mx.array]) -> Tape:
    """The tape of `function`, called with stand-ins for `inputs`; nothing is evaluated."""
    entries: list[dict[str, Any]] = []
    with _exportable():
        mx.export_function(entries.append, function, *inputs)
    found = {entry["type"]: entry for entry in entries}
    operations = tuple(
        _Operation(
            entry["name"],
            tuple(map(_array, entry["inputs"])),
            tuple(map(_array, entry["outputs"])),
            tuple(entry["arguments"][0]) if entry["name"] == "Transpose" else (),
        )
        for entry in entries
        if entry["type"] == "primitive"
    )
    outputs = tuple(name for name, *_ in found["outputs"]["outputs"])
    inputs_ = tuple(map(_array, found["inputs"]["inputs"]))
    return Tape(tuple(_in_order(operations, outputs)), inputs_, outputs)


def _in_order(operations: Sequence[_Operation], outputs: Sequence[str]) -> Iterator[_Operation]:
    """As MLX evaluates them: backwards from the outputs, in breadth up to a width."""
    made_by = {array.name: n for n, each in enumerate(operations) for array in each.outputs}
    needs = [[made_by[a.name] for a in each.inputs if a.name in made_by] for each in operations]
    needs.append([made_by[name] for name in outputs if name in made_by])
    waiting = Counter(source for sources in _reachable(needs) for source in sources)
    order = [len(operations)]
    at = 0
    left: list[tuple[int, int]] = []
    while at < len(order) or left:
        if at < len(order):
            consumer, position = order[at], 0
            at += 1
        else:
            consumer, position = left.pop()
        for n in range(position, len(needs[consumer])):
            if len(order) - at >= _WIDTH:
                left.append((consumer, n))
                break
            source = needs[consumer][n]
            waiting[source] -= 1
            if not waiting[source]:
                order.append(source)
    return (operations[n] for n in reversed(order[1:]))


def _reachable(needs: Sequence[Sequence[int]]) -> Iterator[Sequence[int]]:
    """What each operation needs that the last one, directly or not, needs."""
    seen = {len(needs) - 1}
    stack = [len(needs) - 1]
    while stack:
        sources = needs[stack.pop()]
        yield sources
        for source in sources:
            if source not in seen:
                seen.add(source)
                stack.append(source)


@contextmanager
def _exportable() -> Iterator[None]:
    """MLX cannot export `contiguous`; what takes as much stands in for it meanwhile.

    And where a recurrent layer takes tokens in one by one, the first of them stand for all: each
    takes what the one before has given back.
    """
    contiguous = mx.contiguous
    scan = gated_delta.gated_delta_ops
    mx.contiguous = lambda array, *_, **__: mx.concatenate([array, array[:0]])
    gated_delta.gated_delta_ops = partial(_few_tokens, scan)
    try:
        yield
    finally:
        mx.contiguous = contiguous
        gated_delta.gated_delta_ops = scan


def _few_tokens(
    scan: Callable[..., tuple[mx.array, mx.array]],
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    *others: Any,
) -> tuple[mx.array, mx.array]:
    """A scan of the first tokens, and as much as the others would hold.

    MLX goes backwards from the outputs when it makes its order, and so comes to work out all states
    before the first output: each token's is held until then. `others` are decay, beta, the state
    (of no token) and perhaps a mask.
    """
    decay, beta, state, *mask = others
    repeats = values.shape[2] // queries.shape[2]
    if repeats > 1:
        queries, keys = mx.repeat(queries, repeats, -2), mx.repeat(keys, repeats, -2)
    few, left = slice(_FEW), values.shape[1] - _FEW
    by_token = [array[:, few] for array in (queries, keys, values, decay, beta)]
    given, state = scan(*by_token, state, *(m if m is None else m[:, few] for m in mask))
    if left > 0:
        states = mx.zeros((state.shape[0], left, *state.shape[1:]), state.dtype)
        rest = mx.sum(states, axis=-1).astype(given.dtype)
        given = mx.concatenate([given, rest], axis=1)
    return given, state


def _array(entry: tuple[str, Sequence[int], Any]) -> _Array:
    name, shape, dtype = entry
    return _Array(name, math.prod(shape), dtype.size, tuple(shape))


@dataclass(slots=True)
class _Buffer:
    nbytes: int
    names: int = 0
    """Arrays in it that are still needed."""
    read: int = -_NEVER
    """The dispatch until which somebody reads it."""


@dataclass(slots=True)
class _Run:
    """One walk over a tape."""

    tape: Tape
    dispatch: int = 0
    held: int = 0
    freed: list[tuple[int, int]] = field(default_factory=list)
    """(dispatch that ends it, bytes) of buffers that nobody needs any more; a heap."""
    buffers: dict[str, _Buffer] = field(default_factory=dict)
    flat: set[str] = field(default_factory=set)
    """Arrays whose numbers lie side by side."""
    torn: set[str] = field(default_factory=set)
    """Arrays whose matrices must be copied before they are multiplied."""
    uses: Counter[str] = field(default_factory=Counter)
    each_time: set[str] = field(default_factory=set)
    """Views that each use makes anew."""

    def heights(self) -> list[int]:
        self.uses.update(a.name for o in self.tape.operations for a in o.inputs)
        self.uses.update(self.tape.outputs)
        for array in self.tape.inputs:
            self._allocate(array)
        heights = []
        for operation in self.tape.operations:
            self._give_back()
            self._run(operation)
            heights.append(self.held)
        return heights

    @property
    def _done(self) -> int:
        """The dispatch that the working thread has passed for certain."""
        return _GROUP * (self.dispatch // _GROUP - _AHEAD)

    def _give_back(self) -> None:
        while self.freed and self.freed[0][0] <= self._done:
            self.held -= heapq.heappop(self.freed)[1]

    def _run(self, operation: _Operation) -> None:
        known = [array for array in operation.inputs if array.name in self.buffers]
        self.dispatch += sum(array.name in self.each_time for array in operation.inputs)
        if self._is_view(operation):
            taken = None
            self._view(operation, known)
        else:
            taken = self._compute(operation, known)
        for array in known:
            self._drop(array, taken)

    def _view(self, operation: _Operation, known: Sequence[_Array]) -> None:
        names = [array.name for array in operation.outputs]
        if not known:
            self.each_time.update(names)
            return
        if operation.name in _MERGED:
            self.each_time.update(names)
        else:
            self.dispatch += 1
        for n, output in enumerate(operation.outputs):
            source = known[min(n, len(known) - 1)].name
            flat = source in self.flat and operation.side_by_side
            self._name(output, self.buffers[source], flat=flat)
            if not flat and (source in self.torn or operation.tears_rows):
                self.torn.add(output.name)

    def _compute(self, operation: _Operation, known: Sequence[_Array]) -> _Buffer | None:
        taken = self._written_over(operation, known)
        if taken is None:
            for output in operation.outputs:
                self._allocate(output)
        else:
            self._name(operation.outputs[0], taken)
        scratch = _scratch(operation) + self._copied(operation)
        copied = operation.name == "Softmax" and known and known[0].name not in self.flat
        self.dispatch += 1 + _dispatches(operation) + bool(copied)
        if scratch:
            self.held += scratch
            heapq.heappush(self.freed, (self.dispatch, scratch))
        return taken

    def _copied(self, operation: _Operation) -> int:
        """Bytes of the matrices that are copied to be multiplied, and the dispatches for it."""
        if operation.name not in _MULTIPLIES:
            return 0
        torn = [array for array in operation.inputs if array.name in self.torn]
        self.dispatch += len(torn)
        return sum(array.nbytes for array in torn)

    def _is_view(self, operation: _Operation) -> bool:
        if operation.name in _RESHAPES:
            source = operation.inputs[0].name
            return source in self.flat or source not in self.buffers
        return operation.name in _VIEWS

    def _written_over(self, operation: _Operation, known: Sequence[_Array]) -> _Buffer | None:
        """The buffer of the input that the result may replace."""
        if operation.name == "SliceUpdate":
            known = known[:1] if known[:1] == list(operation.inputs[:1]) else []
        elif operation.name not in _IN_PLACE:
            return None
        output = operation.outputs[0]
        for array in known:
            buffer = self.buffers[array.name]
            if (
                array.nbytes == output.nbytes == buffer.nbytes
                and array.itemsize == output.itemsize
                and self.uses[array.name] == 1
                and buffer.names == 1
                and buffer.read <= self._done
            ):
                return buffer
        return None

    def _allocate(self, array: _Array) -> None:
        self.held += array.nbytes
        self._name(array, _Buffer(array.nbytes))

    def _name(self, array: _Array, buffer: _Buffer, *, flat: bool = True) -> None:
        self.buffers[array.name] = buffer
        if flat:
            self.flat.add(array.name)
        if self.uses[array.name]:
            buffer.names += 1
        elif not buffer.names:
            heapq.heappush(self.freed, (self.dispatch + 1, buffer.nbytes))

    def _drop(self, array: _Array, taken: _Buffer | None) -> None:
        buffer = self.buffers[array.name]
        if buffer is not taken:
            buffer.read = self.dispatch
        self.uses[array.name] -= 1
        if self.uses[array.name]:
            return
        buffer.names -= 1
        if not buffer.names:
            heapq.heappush(self.freed, (self.dispatch, buffer.nbytes))


def _dispatches(operation: _Operation) -> int:
    if operation.name == "Concatenate":
        return len(operation.inputs)
    return _DISPATCHES.get(operation.name, 1)


def _scratch(operation: _Operation) -> int:
    """A convolution lays its input out for a multiplication, in float32 (explicit_gemm_conv)."""
    if operation.name != "Convolution":
        return 0
    source, weights = operation.inputs[:2]
    output = operation.outputs[0]
    positions = math.prod(output.shape[:-1]) * math.prod(weights.shape[1:-1])
    result = output.elements if output.itemsize != _FLOAT32 else 0
    return _FLOAT32 * (source.elements + positions * source.shape[-1] + result)
