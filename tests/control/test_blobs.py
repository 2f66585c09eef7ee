"""Uploads: whole and right, or not there at all; and no more than policy has room for."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlxd.control import blobs
from mlxd.control.blobs import Blobs, Bounds
from mlxd.core.clock import SystemClock
from mlxd.core.errors import InsufficientStorage, InvalidRequest, Overloaded, PolicyLine

DATA = b"weights" * 1000
DIGEST = hashlib.sha256(DATA).hexdigest()
BOUNDS = Bounds(
    10**6,
    3,
    3600.0,
    PolicyLine("models.uploads.max_bytes", "1MB", "models.yaml:2"),
    PolicyLine("models.uploads.max_count", "3", "models.yaml:3"),
)


async def pieces(*given: bytes) -> AsyncIterator[bytes]:
    for piece in given:
        yield piece


@pytest.fixture
def kept(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path / "blobs", SystemClock())


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in (folder / "blobs").iterdir())


async def test_what_comes_in_pieces_is_one_file(
    kept: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "_BATCH", 100)
    assert not await kept.has(DIGEST)
    assert await kept.receive(DIGEST, pieces(DATA[:50], DATA[50:3000], DATA[3000:]), BOUNDS)
    assert kept.path(DIGEST).read_bytes() == DATA
    assert names(tmp_path) == [f"sha256-{DIGEST}"]
    assert await kept.has(DIGEST)
    assert not await kept.receive(DIGEST, pieces(b"not read"), BOUNDS)


async def test_other_bytes_are_not_kept(kept: Blobs, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=f'expected "sha256:{DIGEST}", got "sha256:'):
        await kept.receive(DIGEST, pieces(DATA, b"!"), BOUNDS)
    assert names(tmp_path) == []


async def test_one_that_breaks_off_leaves_nothing(
    kept: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "_BATCH", 100)

    async def broken() -> AsyncIterator[bytes]:
        yield DATA
        raise InvalidRequest("the body is cut short")

    with pytest.raises(InvalidRequest, match="cut short"):
        await kept.receive(DIGEST, broken(), BOUNDS)
    assert names(tmp_path) == []
    assert not kept._parts


async def test_uploads_have_bounds_together(kept: Blobs, tmp_path: Path) -> None:
    await kept.receive(DIGEST, pieces(DATA), BOUNDS)
    small = replace(BOUNDS, most_bytes=len(DATA) + 100)
    other = hashlib.sha256(b"x" * 101).hexdigest()
    with pytest.raises(InsufficientStorage) as caught:
        await kept.receive(other, pieces(b"x" * 101), small)
    assert caught.value.policy == BOUNDS.line
    assert names(tmp_path) == [f"sha256-{DIGEST}"]


async def test_the_disk_is_not_filled(kept: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    usage: Any = lambda folder: type("Usage", (), {"free": blobs.SPARE_BYTES + 10})  # noqa: E731
    monkeypatch.setattr(shutil, "disk_usage", usage)
    with pytest.raises(InsufficientStorage, match="no room"):
        await kept.receive(DIGEST, pieces(DATA), BOUNDS)


async def test_only_so_many_come_at_a_time(kept: Blobs) -> None:
    begun: asyncio.Queue[None] = asyncio.Queue()

    async def slow() -> AsyncIterator[bytes]:
        begun.put_nowait(None)
        await asyncio.Event().wait()
        yield DATA

    digests = [f"{n:064x}" for n in range(blobs.MOST_AT_ONCE)]
    tasks = [asyncio.create_task(kept.receive(digest, slow(), BOUNDS)) for digest in digests]
    for _ in tasks:
        await begun.get()
    with pytest.raises(Overloaded):
        await kept.receive(DIGEST, pieces(DATA), BOUNDS)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert await kept.receive(DIGEST, pieces(DATA), BOUNDS)


async def test_one_whose_end_cannot_be_seen_to_is_under_way_no_longer(
    kept: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as where the system has no thread left for that."""

    def no_thread(*_: object) -> None:
        raise OSError("no thread")

    async def broken() -> AsyncIterator[bytes]:
        yield DATA
        monkeypatch.setattr(kept._threads, "run", no_thread)

    for _ in range(blobs.MOST_AT_ONCE):
        with pytest.raises(OSError, match="no thread"):
            await kept.receive(DIGEST, broken(), BOUNDS)
        monkeypatch.undo()
    assert await kept.receive(DIGEST, pieces(DATA), BOUNDS)


async def test_what_nobody_wants_goes_after_a_while(kept: Blobs, tmp_path: Path) -> None:
    await kept.receive(DIGEST, pieces(DATA), BOUNDS)
    (tmp_path / "blobs" / f".{DIGEST}.1.part").touch()
    (tmp_path / "blobs" / "of-somebody-else").touch()
    kept.sweep(3600.0)
    assert names(tmp_path) == ["of-somebody-else", f"sha256-{DIGEST}"]
    os.utime(kept.path(DIGEST), (1.0, 1.0))
    assert await kept.has(DIGEST), "who asks will want it"
    kept.sweep(3600.0)
    assert kept.path(DIGEST).exists()
    os.utime(kept.path(DIGEST), (1.0, 1.0))
    kept.sweep(3600.0)
    assert names(tmp_path) == ["of-somebody-else"]


async def test_one_file_too_many_is_refused_and_the_others_stay(
    kept: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "_BATCH", 1)
    small = [bytes([number]) * 3 for number in range(4)]
    digests = [hashlib.sha256(data).hexdigest() for data in small]
    for data, digest in zip(small[:3], digests[:3], strict=True):
        assert await kept.receive(digest, pieces(data, data[:0]), BOUNDS)
    with pytest.raises(InsufficientStorage) as refused:
        await kept.receive(digests[3], pieces(small[3]), BOUNDS)
    assert "models.uploads.max_count: 3" in refused.value.explained()
    assert names(tmp_path) == sorted(f"sha256-{digest}" for digest in digests[:3])
    assert not await kept.receive(digests[0], pieces(small[0]), BOUNDS)
    more = replace(BOUNDS, most_files=4)
    assert await kept.receive(digests[3], pieces(small[3][:1], small[3][1:]), more)
