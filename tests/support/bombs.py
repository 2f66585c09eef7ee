"""Compressed bodies that are small, and large once inflated; made without inflating them."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator

from backports import zstd

GIB = 2**30
_MIB = 2**20
_ZSTD_BLOCK = 128 * 2**10
_ZSTD_HEAD = b"\x28\xb5\x2f\xfd\x00\x58"
"""A frame of unknown length with a window of 2 MiB."""


def gzip_bomb(size: int) -> Iterator[bytes]:
    """Zeros, a whole number of MiB, a piece of a KiB for each; the end is left out."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    yield packer.compress(b"") + packer.flush(zlib.Z_FULL_FLUSH)
    piece = packer.compress(bytes(_MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    for _ in range(size // _MIB):
        yield piece


def zstd_bomb(size: int) -> Iterator[bytes]:
    """Likewise: blocks of one byte that stands for 128 KiB."""
    yield _ZSTD_HEAD
    header = (_ZSTD_BLOCK << 3 | 1 << 1).to_bytes(3, "little")
    many = (header + b"\0") * 64
    for _ in range(size // _ZSTD_BLOCK // 64):
        yield many


def zstd_window(log: int) -> bytes:
    """A frame of a few bytes that asks for a window of 2**log bytes."""
    window = ((log - 10) << 3).to_bytes(1, "little")
    return b"\x28\xb5\x2f\xfd\x00" + window + (2 << 3 | 1).to_bytes(3, "little") + b"{}"


def packed(encoding: str, plain: bytes) -> bytes:
    match encoding:
        case "gzip":
            return gzip.compress(plain)
        case "deflate":
            return zlib.compress(plain)
        case _:
            return zstd.compress(plain)
