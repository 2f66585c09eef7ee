"""A body that comes compressed, inflated as it comes: never more than a body may hold, and a piece
at a time.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterator
from typing import Protocol

from mlxd.core.errors import InvalidRequest

if sys.version_info >= (3, 14):
    from compression.zstd import DecompressionParameter, ZstdDecompressor, ZstdError
else:
    from backports.zstd import DecompressionParameter, ZstdDecompressor, ZstdError

ENCODINGS = frozenset({"gzip", "deflate", "zstd"})
MOST_MEMBERS = 100
"""Files in one body, one behind the other: what begins each costs more than what is in it."""
_PIECE = 128 * 2**10
_WINDOW_LOG = 23
"""What RFC 8878 (3.1.1.1.2) asks of every decoder: 8 MiB. Decoders take 128 MiB unless told."""
_GZIP = 16 + zlib.MAX_WBITS


class _Member(Protocol):
    """One file of a body; zlib's and zstd's are alike in this."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int = ..., /) -> bytes: ...


class Inflater:
    """Of one body."""

    def __init__(self, encoding: str, most: int) -> None:
        """`most`: bytes, inflated; not far beyond it nothing more is."""
        self._encoding = encoding
        self._most = most
        self._member: _Member | None = None
        self._members = 0
        self.size = 0
        """Bytes that have come of it."""

    def feed(self, data: bytes) -> list[bytes]:
        """What comes of the next bytes. Raises InvalidRequest."""
        try:
            return list(self._pieces(data))
        except (zlib.error, ZstdError) as error:
            raise InvalidRequest("the body is not what its Content-Encoding says") from error

    def end(self) -> None:
        """Nothing more comes. Raises InvalidRequest when it is cut short."""
        if self._member is not None and not self._member.eof:
            raise InvalidRequest("the body is cut short")

    def _pieces(self, data: bytes) -> Iterator[bytes]:
        while data or self._member is not None:
            if self._member is None or self._member.eof:
                if not data:
                    return
                self._member = self._next(data)
            piece = self._member.decompress(data, _PIECE)
            self.size += len(piece)
            yield piece
            if self.size > self._most:
                return
            if self._member.eof:
                data = self._member.unused_data
            else:
                data = getattr(self._member, "unconsumed_tail", b"")  # zstd's keeps it
                if not data and len(piece) < _PIECE:
                    return

    def _next(self, data: bytes) -> _Member:
        self._members += 1
        if self._members > (1 if self._encoding == "deflate" else MOST_MEMBERS):
            raise InvalidRequest("too much is compressed apart in the body")
        if self._encoding == "zstd":
            return ZstdDecompressor(options={DecompressionParameter.window_log_max: _WINDOW_LOG})
        if self._encoding == "gzip":
            return zlib.decompressobj(_GZIP)
        # Some send it without the header that RFC 9110 (8.4.1.2) asks for.
        return zlib.decompressobj(zlib.MAX_WBITS if data[0] & 0x0F == 8 else -zlib.MAX_WBITS)
