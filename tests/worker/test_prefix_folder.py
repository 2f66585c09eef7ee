"""The folder of entries: one budget, several writers, disks that refuse."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import BinaryIO

import pytest

from mlxd.worker.prefix import folder as folders
from mlxd.worker.prefix.folder import Folder, ranked

pytestmark = pytest.mark.mlx
KIB = 1024


def full(size: int) -> bytes:
    return b"x" * size


def put(folder: Folder, name: str, size: int, budget: int | None = 10 * KIB) -> Path:
    return folder.put(f"{name}.prefix", size, budget, lambda stream: stream.write(full(size)))


@pytest.fixture
def roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk of this machine decides nothing."""
    monkeypatch.setattr(folders, "LEFT_FREE", 0)


@pytest.fixture
def root(tmp_path: Path, roomy: None) -> Path:
    return tmp_path / "prefixes"


def names(root: Path) -> set[str]:
    return {file.name for file in root.rglob("*.prefix")}


def test_entries_are_private(root: Path) -> None:
    file = put(Folder(root, "k"), "a", KIB)
    assert file.stat().st_mode & 0o777 == 0o600
    assert {f.stat().st_mode & 0o777 for f in (root, root / "k")} == {0o700}


def test_folders_that_were_there_become_private(root: Path) -> None:
    (root / "k").mkdir(parents=True)
    for folder in (root, root / "k"):
        folder.chmod(0o755)
    put(Folder(root, "k"), "a", KIB)
    assert {f.stat().st_mode & 0o777 for f in (root, root / "k")} == {0o700}


def test_nothing_is_written_through_a_link(root: Path, tmp_path: Path) -> None:
    root.mkdir()
    (elsewhere := tmp_path / "elsewhere").mkdir()
    (root / "k").symlink_to(elsewhere)
    with pytest.raises(OSError, match="directory"):
        put(Folder(root, "k"), "a", KIB)
    assert list(elsewhere.iterdir()) == []


def test_what_is_longest_unused_makes_room_whoever_wrote_it(root: Path) -> None:
    one, other = Folder(root, "one"), Folder(root, "other")
    first = put(one, "first", 4 * KIB)
    second = put(other, "second", 4 * KIB)
    one.touch(first, time.time() - 50)
    other.touch(second, time.time() - 100)
    put(one, "third", 4 * KIB)
    assert names(root) == {"first.prefix", "third.prefix"}
    assert not (root / "other").exists()


def test_systems_turns_and_those_to_be_kept_make_room_last(root: Path) -> None:
    folder = Folder(root, "k")
    old = time.time() - 1000
    for name in ("kept", "system", "usual"):
        named = ranked(f"{name}.prefix", system=name == "system", kept=name == "kept")
        file = folder.put(named, 3 * KIB, 10 * KIB, lambda stream: stream.write(full(3 * KIB)))
        folder.touch(file, old)
        old += 10
    put(folder, "a", 3 * KIB)
    assert names(root) == {"kept.kept.prefix", "system.system.prefix", "a.prefix"}
    put(folder, "b", 6 * KIB)
    assert names(root) == {"kept.kept.prefix", "b.prefix"}


def test_what_nobody_used_in_a_week_goes(root: Path) -> None:
    folder = Folder(root, "k")
    folder.touch(put(folder, "a", KIB), time.time() - 8 * 86400)
    put(folder, "b", KIB)
    folder.tidy(10 * KIB)
    assert names(root) == {"b.prefix"}


def test_a_lowered_budget_is_kept_at_once(root: Path) -> None:
    folder = Folder(root, "k")
    for name in "abc":
        put(folder, name, 3 * KIB)
    folder.tidy(4 * KIB)
    assert len(names(root)) == 1


def test_one_that_is_larger_than_all_room_evicts_nobody(root: Path) -> None:
    folder = Folder(root, "k")
    put(folder, "a", KIB)
    with pytest.raises(OSError, match="space"):
        put(folder, "b", 11 * KIB)
    assert names(root) == {"a.prefix"}


def test_auto_is_a_share_of_what_is_free(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 100 * KIB

    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage)
    folder = Folder(root, "k")
    put(folder, "a", 10 * KIB, budget=None)
    with pytest.raises(OSError, match="space"):
        put(folder, "b", 12 * KIB, budget=None)
    monkeypatch.setattr(folders, "LEFT_FREE", 95 * KIB)
    with pytest.raises(OSError, match="space"):
        put(folder, "b", 16 * KIB, budget=100 * KIB)


def test_a_write_that_fails_leaves_nothing(root: Path) -> None:
    folder = Folder(root, "k")

    def fails(stream: BinaryIO) -> None:
        stream.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="space"):
        folder.put("a.prefix", KIB, None, fails)
    assert list((root / "k").iterdir()) == []


def test_a_lock_that_is_held_for_long_is_given_up(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "_LOCK_SECONDS", 0.05)
    folder = Folder(root, "k")
    with folder._locked(), pytest.raises(OSError, match="timed out"):
        put(Folder(root, "other"), "a", KIB)


def test_two_writers_keep_one_budget(root: Path) -> None:
    def write(key: str) -> None:
        folder = Folder(root, key)
        for n in range(40):
            put(folder, f"{key}{n}", 2 * KIB)
            held = sum(f.stat().st_size for f in (root / key).glob("*.prefix") if f.exists())
            assert held <= 10 * KIB

    threads = [threading.Thread(target=write, args=[key]) for key in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sizes = [file.stat().st_size for file in root.rglob("*.prefix")]
    assert 0 < sum(sizes) <= 10 * KIB


DIES = """
import os, signal, sys, threading, time
from pathlib import Path
from mlxd.worker.prefix import folder as folders
from mlxd.worker.prefix.folder import Folder
folders.LEFT_FREE = 0
folder = Folder(Path(sys.argv[1]), "k")
count = 0
def write(stream):
    for n in range(16):
        stream.write(bytes([count % 256]) * 4096)
        stream.flush()
print("ready", flush=True)
while True:
    folder.put(f"{count % 5}.prefix", 16 * 4096, 2**30, write)
    count += 1
"""


@pytest.mark.parametrize("moments", [6, pytest.param(60, marks=pytest.mark.slow)])
def test_a_writer_that_is_killed_leaves_whole_entries_alone(root: Path, moments: int) -> None:
    for n in range(moments):
        process = subprocess.Popen(
            [sys.executable, "-c", DIES, str(root)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.01 + 0.003 * n)
        process.kill()
        process.wait()
        process.stdout.close()
    folder = Folder(root, "k")
    for found in folder.entries():
        content = found.file.read_bytes()
        assert len(content) == 16 * 4096
        assert len(set(content)) == 1
    folder.tidy(2**30)
    left = {file.name for file in (root / "k").iterdir()}
    assert left == names(root)


def test_a_living_writers_file_is_not_swept(root: Path) -> None:
    one = Folder(root, "k")

    def slowly(stream: BinaryIO) -> None:
        stream.write(full(KIB))
        Folder(root, "other").tidy(10 * KIB)
        put(Folder(root, "other"), "b", KIB)

    one.put("a.prefix", KIB, 10 * KIB, slowly)
    assert names(root) == {"a.prefix", "b.prefix"}


def test_what_is_under_way_counts(root: Path) -> None:
    """It has its whole size from the first byte on."""
    one = Folder(root, "k")

    def slowly(stream: BinaryIO) -> None:
        with pytest.raises(OSError, match="space"):
            put(Folder(root, "other"), "b", 6 * KIB, budget=5 * KIB)
        put(Folder(root, "other"), "c", 5 * KIB)
        assert names(root) == {"c.prefix"}
        put(Folder(root, "other"), "d", 4 * KIB)
        assert names(root) == {"d.prefix"}
        stream.write(full(5 * KIB))

    one.put("a.prefix", 5 * KIB, 10 * KIB, slowly)


def test_nothing_is_found_where_there_is_nothing(root: Path) -> None:
    assert Folder(root, "k").entries() == []
    root.parent.joinpath("file").write_text("")
    folder = Folder(root.parent / "file", "k")
    assert folder.entries() == []
    folder.tidy(KIB)
    folder.clear()
    with pytest.raises(FileExistsError):
        put(folder, "a", KIB)
