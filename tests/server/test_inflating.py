"""Compressed bodies: read in any pieces, and never far beyond what a body may hold."""

from __future__ import annotations

import random
import tracemalloc
import zlib
from itertools import islice

import pytest

from mlxd.core.errors import InvalidRequest
from mlxd.server.inflating import ENCODINGS, MOST_MEMBERS, Inflater
from tests.support.bombs import GIB, gzip_bomb, packed, zstd_bomb, zstd_window

MOST = 8 * 2**20
EVERY = sorted(ENCODINGS)


def inflated(encoding: str, *pieces: bytes, most: int = MOST) -> bytes:
    inflater = Inflater(encoding, most)
    read = [piece for given in pieces for piece in inflater.feed(given)]
    assert inflater.size == sum(map(len, read))
    inflater.end()
    return b"".join(read)


@pytest.mark.parametrize("encoding", EVERY)
@pytest.mark.parametrize("size", [0, 1, 1000, 128 * 2**10, 128 * 2**10 + 1, 3_000_000])
def test_what_was_packed_comes_out_in_any_pieces(encoding: str, size: int) -> None:
    plain = random.Random(size).randbytes(size // 2) + bytes(size - size // 2)
    body = packed(encoding, plain)
    assert inflated(encoding, body) == plain
    cuts = [body[at : at + 50_000] for at in range(0, len(body), 50_000)]
    assert inflated(encoding, *cuts) == plain
    assert inflated(encoding, body[:1], body[1:]) == plain


def test_nothing_is_nothing() -> None:
    assert inflated("gzip") == inflated("zstd", b"") == b""


def test_deflate_without_its_header_is_read() -> None:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    assert inflated("deflate", packer.compress(b'{"a": 1}') + packer.flush()) == b'{"a": 1}'


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_several_members_are_one_body(encoding: str) -> None:
    one = packed(encoding, b"ab")
    assert inflated(encoding, one * 3) == b"ababab"
    assert inflated(encoding, one, one, one[:3], one[3:]) == b"ababab"


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
@pytest.mark.parametrize("apart", [False, True])
def test_many_members_are_refused(encoding: str, apart: bool) -> None:
    one = packed(encoding, b"")
    assert inflated(encoding, one * MOST_MEMBERS) == b""
    many = [one * 100_000] if not apart else [one] * (MOST_MEMBERS + 1)
    with pytest.raises(InvalidRequest, match="compressed apart"):
        inflated(encoding, *many)


@pytest.mark.parametrize("encoding", EVERY)
def test_what_is_cut_or_followed_by_anything_is_refused(encoding: str) -> None:
    body = packed(encoding, b'{"a": 1}')
    for cut in range(1, len(body)):
        with pytest.raises(InvalidRequest):
            inflated(encoding, body[:cut])
    for tail in (b"\0", b"xyzxyzxyz", b"{}", *([body] if encoding == "deflate" else [])):
        with pytest.raises(InvalidRequest):
            inflated(encoding, body + tail)


@pytest.mark.parametrize("encoding", EVERY)
def test_what_is_not_what_it_says_is_refused(encoding: str) -> None:
    for body in (b"{}", b"\x1f\x8b" + bytes(20), b"\x28\xb5\x2f\xfd" + b"\xff" * 20, b"\x00" * 30):
        with pytest.raises(InvalidRequest):
            inflated(encoding, body)


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_bomb_is_left_as_it_is_beyond_the_limit(encoding: str) -> None:
    bomb = b"".join(islice((gzip_bomb if encoding == "gzip" else zstd_bomb)(GIB), 64))
    inflater = Inflater(encoding, MOST)
    tracemalloc.start()
    try:
        read = inflater.feed(bomb)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert MOST < inflater.size == sum(map(len, read)) < MOST + 2**18
    assert peak < 1.5 * MOST


@pytest.mark.parametrize(("log", "read"), [(20, True), (23, True), (24, False), (31, False)])
def test_a_frame_cannot_ask_for_any_memory(log: int, read: bool) -> None:
    if read:
        assert inflated("zstd", zstd_window(log)) == b"{}"
    else:
        with pytest.raises(InvalidRequest):
            inflated("zstd", zstd_window(log))
