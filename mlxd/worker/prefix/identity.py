"""What the numbers in a cache were computed by, as a key: another key, other numbers.

Everything that they depend on is in it: the model's files, its adapter's, how its caches are kept,
the engine's versions and device, and the format of what is written. Tokens are not: an entry has
its own, so neither tokenizer nor chat template could make it mean something else.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx

from mlxd.core import versions

_FORMAT = 1
_SUFFIXES = frozenset((".safetensors", ".json", ".py", ".npz"))
"""Of files that decide what a model computes."""
_SAMPLES, _SAMPLE_BYTES = 16, 4096
"""Read of each file, over its whole length: what was written over in place, its size and times
kept, differs in some of them."""
_KEY_BYTES = 16


def identity(
    folder: Path, adapter: Path | None, *, digest: str, kv_bits: int, dated: bool = True
) -> str:
    """`digest`: the daemon's, over the weights' files. `dated`: a file that was written anew
    is another one, whatever is in it. Raises OSError.
    """
    told = hashlib.blake2b(digest_size=_KEY_BYTES)
    device = mx.device_info()
    parts = (
        _FORMAT,
        digest,
        kv_bits,
        sorted(versions.engine().items()),
        str(mx.default_device()),
        device.get("architecture", ""),
        device.get("device_name", ""),
    )
    told.update(repr(parts).encode())
    for place in (folder, adapter):
        told.update(b"\0")
        for file in _files(place) if place is not None else ():
            _add(told, file, dated=dated)
    return told.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    for file in sorted(folder.iterdir()):
        if file.suffix in _SUFFIXES and not file.name.startswith(".") and file.is_file():
            yield file


def _add(told: hashlib.blake2b, file: Path, *, dated: bool) -> None:
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        when = status.st_mtime_ns if dated else 0
        told.update(repr((file.name, status.st_size, when)).encode())
        for at in _places(status.st_size):
            told.update(os.pread(descriptor, _SAMPLE_BYTES, at))
    finally:
        os.close(descriptor)


def _places(size: int) -> list[int]:
    """Where samples begin: the first and the last bytes are among them."""
    last = max(0, size - _SAMPLE_BYTES)
    return sorted({last * n // (_SAMPLES - 1) for n in range(_SAMPLES)})
