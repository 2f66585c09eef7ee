"""Reads and checks the header of a safetensors file; of the numbers themselves some at most.

Such a file is eight bytes with the length of the header, the header (JSON: each tensor's type,
shape and range of bytes), and the bytes of all tensors, one after the other without gaps.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from mlxd.control.reading import TooManyError, UnreadableModel, members, opened, readable

T = TypeVar("T")

MAX_HEADER_BYTES = 16 * 2**20
MOST_TENSORS = 150_000
"""In one file; more are no model's, nor is a longer header."""
_MOST_ENTRY_BYTES = 4096
"""What a header says of one tensor."""
BITS: Mapping[str, int] = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "C64"), 64),
}
"""Of one number of each type that MLX reads."""
MOST_ELEMENTS = 2**53
"""More numbers than anything that exists has; also bytes from here up are no file's."""
_LARGEST = 2**48
_SAMPLE_BYTES = 4096
_GOLDEN = (5**0.5 - 1) / 2
"""Its multiples lie evenly between whole numbers, and keep no step with how layers repeat."""
_LONGEST_NAME = 100
_MOST_DIMENSIONS = 32


class Tensor(NamedTuple):
    """One tensor of a file. A tuple, because a folder may hold a hundred thousand."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    """The range of its bytes, counted from the end of the header."""
    end: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class Header:
    """What one file says of itself."""

    raw: bytes
    file_bytes: int
    tensors: tuple[Tensor, ...]
    sample: bytes = b""
    """A digest over some of its numbers, where that was asked for."""

    @property
    def data_bytes(self) -> int:
        """What the file has room for behind the header."""
        return self.file_bytes - 8 - len(self.raw)


def read_header(file: Path, samples: int = 0) -> Header:
    """`samples`: of how many tensors some numbers are looked at. Raises UnreadableModel where
    nothing can be known of the file.
    """
    with opened(file) as (stream, size):
        prefix = stream.read(8)
        if len(prefix) < 8:
            raise UnreadableModel(f"its {file.name} is cut short")
        (length,) = struct.unpack("<Q", prefix)
        if length > min(size - 8, MAX_HEADER_BYTES):
            raise UnreadableModel(f"its {file.name} is cut short or damaged")
        raw = stream.read(length)
        tensors = _tensors(raw, file.name)
        sample = _sampled(stream.fileno(), 8 + length, tensors, samples)
    return Header(raw, size, tensors, sample)


def _sampled(descriptor: int, begin: int, tensors: Sequence[Tensor], samples: int) -> bytes:
    """From the middle of each, which training changes sooner than the first rows of a vocabulary.
    What lies behind the file's end is empty. Raises OSError.
    """
    chosen = {int(len(tensors) * (n * _GOLDEN % 1)) for n in range(min(samples, len(tensors)))}
    found = hashlib.sha256()
    for tensor in (tensors[n] for n in sorted(chosen)):
        at = tensor.begin + max(0, tensor.size_bytes - _SAMPLE_BYTES) // 2
        found.update(os.pread(descriptor, min(tensor.size_bytes, _SAMPLE_BYTES), begin + at))
    return found.digest()


def flaw_of(header: Header, name: str) -> str:
    """Why the header of the file `name` does not fit the file; empty where it does."""
    ordered = sorted(header.tensors, key=lambda tensor: (tensor.begin, tensor.end))
    end = ordered[-1].end if ordered else 0
    if end > header.data_bytes:
        return f"its {name} is cut short: {header.data_bytes} of {end} bytes are there"
    for tensor in ordered:
        if flaw := _misfit(tensor):
            return f"its {name} is damaged: {flaw}"
    if flaw := _misplaced(ordered):
        return f"its {name} is damaged: {flaw}"
    if end < header.data_bytes:
        return f"its {name} is damaged: its last {header.data_bytes - end} bytes are no tensor's"
    return ""


def _misfit(tensor: Tensor) -> str:
    bits = BITS.get(tensor.dtype)
    if bits is None:
        return f"{_shown(tensor)} is of the type {tensor.dtype}, which MLX does not read"
    if tensor.size_bytes * 8 != tensor.elements * bits:
        return f"{_shown(tensor)} has {tensor.size_bytes} bytes, which is not what its shape takes"
    return ""


def _misplaced(ordered: Sequence[Tensor]) -> str:
    if ordered and ordered[0].begin > 0:
        return f"there is a gap before {_shown(ordered[0])}"
    for before, tensor in pairwise(ordered):
        if tensor.begin < before.end:
            return f"{_shown(before)} and {_shown(tensor)} overlap"
        if tensor.begin > before.end:
            return f"there is a gap before {_shown(tensor)}"
    return ""


def _shown(tensor: Tensor) -> str:
    return readable(tensor.name[:_LONGEST_NAME])


def _tensors(raw: bytes, file: str) -> tuple[Tensor, ...]:
    try:
        entries = _without_twins(members(raw, MOST_TENSORS + 1))
        entries.pop("__metadata__", None)
        return tuple(_tensor(name, _entry(said)) for name, said in entries.items())
    except TooManyError as error:
        raise UnreadableModel(f"its {file} has more tensors than any model") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UnreadableModel(f"the header of its {file} is damaged") from error


def _entry(said: bytes) -> Mapping[str, Any]:
    """Raises ValueError for JSON that says more than a tensor needs, or a thing twice."""
    if len(said) > _MOST_ENTRY_BYTES:
        raise ValueError("not a tensor")
    entry: Mapping[str, Any] = json.loads(said, object_pairs_hook=_without_twins)
    return entry


def _without_twins(pairs: list[tuple[str, T]]) -> dict[str, T]:
    """Raises ValueError for a name that comes twice: readers differ in which they take."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name comes twice")
    return found


def _tensor(name: str, entry: Mapping[str, Any]) -> Tensor:
    """Raises ValueError, TypeError or KeyError for what cannot be one."""
    dtype, shape = entry["dtype"], entry["shape"]
    begin, end = (_count(offset) for offset in entry["data_offsets"])
    if not isinstance(dtype, str) or not isinstance(shape, list) or begin > end:
        raise ValueError("not a tensor")
    if len(shape) > _MOST_DIMENSIONS:
        raise ValueError("not the shape of anything that exists")
    lengths = tuple(_count(length) for length in shape)
    if math.prod(lengths) >= MOST_ELEMENTS:
        raise ValueError("not the shape of anything that exists")
    if dtype not in BITS:
        dtype = readable(dtype[:_LONGEST_NAME])
    return Tensor(name, dtype, lengths, begin, end)


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < _LARGEST:
        raise ValueError("not a number of anything that exists")
    return value
