"""What workers are told of the beginnings that policies value."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from mlxd.control import prefixes
from mlxd.control.prefixes import PrefixWishes, disk_bytes, read_warm
from mlxd.control.reading import UnreadableModel
from mlxd.core import durable
from mlxd.core.models import ModelCard
from mlxd.core.request import Message
from mlxd.ipc import messages as ipc
from mlxd.policy.load import load
from mlxd.policy.policy_set import PolicySet
from tests.support.daemon import write_policies
from tests.support.homeless import homeless

CARD = ModelCard("agent", "/m", 1, "d" * 64, 0.0, "llama", 1, "4bit", 4096)


class Worker:
    def __init__(self) -> None:
        self.told: list[ipc.PrefixRules] = []

    def value(self, rules: ipc.PrefixRules) -> None:
        self.told.append(rules)


def policies(tmp_path: Path, **files: str) -> PolicySet:
    return load(write_policies(tmp_path / "policies", files))


async def test_without_a_word_a_worker_keeps_what_it_can(tmp_path: Path) -> None:
    wishes, worker = PrefixWishes(tmp_path, load()), Worker()
    wishes.tell(worker, CARD)
    assert worker.told == [ipc.PrefixRules(None, [], [])]
    assert wishes.files(CARD) == ipc.PrefixFiles(bytes(tmp_path / "prefixes"), "d" * 64, None)


async def test_files_are_read_behind_what_is_known(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("You are one.\n")
    found = policies(
        tmp_path,
        models=f"models: {{agent: {{prefixes: {{keep: [a*], warm: [{tmp_path}/one.txt, "
        f"{tmp_path}/none.txt]}}}}}}\n",
        memory="prefix_cache: {disk: 1GiB}\n",
    )
    wishes, worker = PrefixWishes(tmp_path, found), Worker()
    wishes.tell(worker, CARD)
    assert worker.told == [ipc.PrefixRules(2**30, ["a*"], None)]
    await asyncio.gather(*wishes._tasks)
    assert worker.told[1].warm is not None
    (warm,) = worker.told[1].warm
    assert warm.request.messages == (Message("system", "You are one."), Message("user", "Hello"))
    (warning,) = wishes.warnings()
    assert "none.txt" in warning
    assert str(tmp_path) not in warning
    wishes.apply(load())
    assert wishes.warnings() == []


async def test_what_was_read_under_other_policies_is_told_nobody(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("You are one.")
    found = policies(
        tmp_path, models=f"models: {{agent: {{prefixes: {{warm: [{tmp_path}/one.txt]}}}}}}\n"
    )
    wishes, worker = PrefixWishes(tmp_path, found), Worker()
    wishes.tell(worker, CARD)
    wishes.apply(load())
    await asyncio.gather(*wishes._tasks)
    assert len(worker.told) == 1


def test_off_removes_what_is_there(tmp_path: Path) -> None:
    def until_gone() -> None:
        deadline = time.monotonic() + 20
        while (tmp_path / "prefixes").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    off = policies(tmp_path, memory="prefix_cache: {disk: off}\n")
    assert disk_bytes(off) == 0
    (tmp_path / "prefixes" / "key").mkdir(parents=True)
    wishes = PrefixWishes(tmp_path, load())
    assert (tmp_path / "prefixes").exists()
    wishes.apply(off)
    until_gone()
    (tmp_path / "prefixes").mkdir()
    PrefixWishes(tmp_path, off)
    until_gone()


@pytest.mark.parametrize("wanted", [False, True])
def test_what_a_disk_does_not_let_go_is_removed_once_it_does_unless_it_is_wanted_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    wanted: bool,
) -> None:
    tries = threading.Semaphore(0)
    (key := tmp_path / "prefixes" / "key").mkdir(parents=True)
    (key / "a.prefix").write_text("")
    real = durable.remove_tree
    monkeypatch.setattr(durable, "remove_tree", lambda _: tries.release())
    monkeypatch.setattr(prefixes, "AGAIN_SECONDS", 0.01)
    off = policies(tmp_path, memory="prefix_cache: {disk: off}\n")
    wishes = PrefixWishes(tmp_path, off)
    for _ in range(3):
        assert tries.acquire(timeout=20)
    wishes.apply(off)
    (warning,) = wishes.warnings()
    assert "memory.prefix_cache.disk is off" in warning
    assert caplog.text.count(warning) == 1
    if wanted:
        wishes.apply(load())
    monkeypatch.setattr(durable, "remove_tree", real)
    wishes._removal._thread.join(20)
    assert key.exists() == wanted
    assert wishes.warnings() == []


@pytest.mark.parametrize("guarded", ["prefixes", "prefixes/key"])
def test_what_may_not_be_looked_at_is_taken_to_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guarded: str
) -> None:
    """Such as what a daemon of another user has left."""
    (tmp_path / "prefixes" / "key").mkdir(parents=True)
    off, looks = policies(tmp_path, memory="prefix_cache: {disk: off}\n"), threading.Semaphore(0)
    for name in ("scandir", "listdir"):
        monkeypatch.setattr(os, name, refused(tmp_path / guarded, looks, getattr(os, name)))
    monkeypatch.setattr(durable, "remove_tree", lambda _: None)
    monkeypatch.setattr(prefixes, "AGAIN_SECONDS", 0.01)
    wishes = PrefixWishes(tmp_path, off)
    for _ in range(3):
        assert looks.acquire(timeout=20)
    assert len(wishes.warnings()) == 1
    wishes.apply(load())
    wishes._removal._thread.join(20)


def refused(folder: Path, looks: threading.Semaphore, real: Any) -> Any:
    def look(path: Any = ".") -> Any:
        if not isinstance(path, int) and Path(path) == folder:
            looks.release()
            raise PermissionError(13, "Permission denied")
        return real(path)

    return look


def test_want_of_a_thread_for_that_keeps_no_policy_from_its_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    wishes = PrefixWishes(tmp_path, load())
    monkeypatch.setattr(threading.Thread, "start", none)
    wishes.apply(policies(tmp_path, memory="prefix_cache: {disk: off}\n"))
    assert wishes.files(CARD).disk_bytes == 0
    assert "are not removed" in caplog.text


def test_what_is_laid_elsewhere_is_removed_there(tmp_path: Path) -> None:
    """The operator's link stays, and so does what is not ours."""
    (key := tmp_path / "large" / "key").mkdir(parents=True)
    for name in ("a.prefix", ".b.prefix.123-4", "others.txt"):
        (key / name).write_text("")
    (tmp_path / "prefixes").symlink_to(tmp_path / "large")
    PrefixWishes(tmp_path, policies(tmp_path, memory="prefix_cache: {disk: off}\n"))
    deadline = time.monotonic() + 20
    while len(list(key.iterdir())) > 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert (key / "others.txt").exists()
    assert (tmp_path / "prefixes").is_symlink()


async def test_clearing_removes_what_is_on_disk_of_all_models(tmp_path: Path) -> None:
    (tmp_path / "prefixes" / "key").mkdir(parents=True)
    await PrefixWishes(tmp_path, load()).clear()
    assert not (tmp_path / "prefixes").exists()


@pytest.mark.parametrize(
    ("content", "messages", "tools"),
    [
        ('{"messages": [{"role": "system", "content": "a"}]}', [("system", "a")], ()),
        (
            '{"messages": [{"role": "system", "content": "a"}], "tools": [{"type": "function"}]}',
            [("system", "a")],
            ({"type": "function"},),
        ),
    ],
)
def test_a_file_of_messages(
    content: str, messages: list[tuple[str, str]], tools: Any, tmp_path: Path
) -> None:
    (tmp_path / "a.json").write_text(content)
    request = read_warm(str(tmp_path / "a.json"), "m").request
    assert request.messages == (*(Message(*m) for m in messages), Message("user", "Hello"))
    assert request.tools == tools


@pytest.mark.parametrize(
    "content",
    [
        b"{}",
        b'{"messages": []}',
        b'{"messages": [{"role": "king", "content": "a"}]}',
        b'{"messages": [{"role": "system", "content": 1}]}',
        b"\xff",
        b"secret",
    ],
)
def test_a_file_that_is_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UnreadableModel) as refused:
        read_warm(str(tmp_path / "a.json"), "m")
    assert "secret" not in str(refused.value)


def test_a_file_in_the_home_of_a_user_who_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    homeless(monkeypatch)
    with pytest.raises(UnreadableModel):
        read_warm("~/a.txt", "m")


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UnreadableModel):
        read_warm(str(tmp_path / "a.txt"), "m")
