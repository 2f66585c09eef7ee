"""One beginning in one file: a head that says what it is, its arrays, and checksums of both.

    b"mlxdpfx1" | size of the head | head | SHA-256 of all that | arrays | SHA-256 of all of it

Whatever is read is checked before it is believed: a file that was cut off, changed or made by
somebody else is `Damaged`, and nothing worse.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import mlx.core as mx
import msgspec

from mlxd.ipc.messages import TOKEN_BYTES
from mlxd.worker.engine import Kind
from mlxd.worker.prefix.folder import ENTRY
from mlxd.worker.prefix.layout import Layer, Slab, array_of, arrays_of

_MAGIC = b"mlxdpfx1"
_SIZE = struct.Struct("<I")
_DIGEST = hashlib.sha256().digest_size
_MOST_HEAD = 64 * 2**20
_NAME_BYTES = 16


class Damaged(Exception):
    """It is not what was written, or not for this model."""


class Head(msgspec.Struct, frozen=True):
    """What a file says of itself."""

    key: str
    """What the caches were computed by: see `identity`."""
    ids: bytes
    """The tokens, packed."""
    kind: Kind
    owner: str
    public: bool
    """Whether it serves everybody."""
    kept: bool
    """The operator wants it kept before others."""
    layers: tuple[Layer, ...]

    @property
    def length(self) -> int:
        return len(self.ids) // TOKEN_BYTES

    @property
    def name(self) -> str:
        """Of its file: the same for the same tokens of the same owner."""
        return name_of(self.ids, self.owner, public=self.public)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Head)


def name_of(ids: bytes, owner: str, *, public: bool) -> str:
    """What serves everybody is nobody's, whoever came with it first."""
    whose = "" if public else owner
    digest = hashlib.blake2b(ids, digest_size=_NAME_BYTES, key=_salt(whose))
    return digest.hexdigest() + ENTRY


def size_of(head: Head) -> int:
    """Bytes of the whole file."""
    return len(_opening(head)) + sum(array.nbytes for array in arrays_of(head.layers)) + _DIGEST


def write(stream: BinaryIO, head: Head, slabs: Sequence[Slab]) -> None:
    """`slabs` are what `head.layers` names, in order. Raises OSError."""
    opening = _opening(head)
    digest = hashlib.sha256(opening)
    stream.write(opening)
    for slab in slabs:
        raw = slab.raw()
        digest.update(raw)
        stream.write(raw)
    stream.write(digest.digest())


@contextmanager
def opened(file: Path) -> Iterator[BinaryIO]:
    """For reading; waits for nobody. Raises OSError, and Damaged for what is no file."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
    with os.fdopen(os.open(file, flags), "rb") as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise Damaged("it is no file")
        yield stream


def read_head(stream: BinaryIO) -> Head:
    """Raises OSError, Damaged. Behind it are the arrays, and the file has all of them."""
    start = stream.read(len(_MAGIC) + _SIZE.size)
    if len(start) != len(_MAGIC) + _SIZE.size or not start.startswith(_MAGIC):
        raise Damaged("it does not begin as one")
    (size,) = _SIZE.unpack_from(start, len(_MAGIC))
    whole = os.fstat(stream.fileno()).st_size
    if size > min(whole, _MOST_HEAD):
        raise Damaged("its head is cut off")
    body, digest = stream.read(size), stream.read(_DIGEST)
    if hashlib.sha256(start + body).digest() != digest:
        raise Damaged("its head is not what was written")
    head = _decoded(body)
    if len(head.ids) % TOKEN_BYTES or not head.ids or _size_said(head) != whole:
        raise Damaged("its size is not what it says")
    return head


def read_arrays(stream: BinaryIO, head: Head) -> list[mx.array]:
    """Behind `read_head`. Raises OSError, Damaged, MemoryError."""
    digest = hashlib.sha256(_opening(head))
    arrays: list[mx.array] = []
    for described in arrays_of(head.layers):
        raw = bytearray(described.nbytes)
        if stream.readinto(raw) != len(raw):  # type: ignore[attr-defined]
            raise Damaged("it is cut off")
        digest.update(raw)
        arrays.append(array_of(described, raw))
    if stream.read(_DIGEST + 1) != digest.digest():
        raise Damaged("its arrays are not what was written")
    return arrays


def _opening(head: Head) -> bytes:
    body = _encoder.encode(head)
    start = _MAGIC + _SIZE.pack(len(body)) + body
    return start + hashlib.sha256(start).digest()


def _decoded(body: bytes) -> Head:
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Damaged("its head is of another kind") from error


def _size_said(head: Head) -> int:
    """-1: it names what there is not."""
    try:
        if any(size < 0 for array in arrays_of(head.layers) for size in array.shape):
            return -1
        return size_of(head)
    except (KeyError, OverflowError):
        return -1


def _salt(owner: str) -> bytes:
    """A key takes 64 bytes."""
    return hashlib.blake2b(owner.encode("utf-8", "surrogatepass"), digest_size=64).digest()
