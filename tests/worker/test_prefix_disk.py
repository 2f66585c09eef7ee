"""Memory and disk together: what is written, when, and what comes back of it."""

from __future__ import annotations

import errno
import os
import queue
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from mlxd.core.request import GenerationRequest, Sampling
from mlxd.ipc.messages import packed, unpacked
from mlxd.worker.job import Fetched, Job
from mlxd.worker.prefix import files, reader, spill, writer
from mlxd.worker.prefix import folder as folders
from mlxd.worker.prefix.backing import Backing
from mlxd.worker.prefix.disk import Disk
from mlxd.worker.prefix.folder import Folder
from mlxd.worker.prefix.keeping import Keeping
from mlxd.worker.prefix.layout import Layout
from mlxd.worker.prefix.reader import DAMAGED, Read
from mlxd.worker.stops import StopStrings
from tests.support.caches import LAYOUTS, Entry, Reads, tokens_of
from tests.worker.conftest import MakeModel

pytestmark = pytest.mark.mlx


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Shelves:
    """Disks on one folder, as workers one after the other have them."""

    def __init__(self, reads: Reads, root: Path, *, trimmable: bool = True) -> None:
        self.reads = reads
        self.root = root
        self.clock = Clock()
        self.told: list[str] = []
        self.lacks: list[str] = []
        self._trimmable = trimmable

    def disk(self, key: str = "key", **more: Any) -> Disk:
        disk = Disk(
            Folder(self.root, key),
            Layout(self.reads.caches([3])),
            trimmable=self._trimmable,
            tell=self.told.append,
            lacks=self.lacks.append,
            clock=self.clock,
            **more,
        )
        disk.start()
        return disk

    def entry(self, seed: int, count: int = 300, **more: Any) -> Entry:
        return self.reads.entry(tokens_of(seed, count), **{"used": self.clock.now - 6, **more})

    def later(self, seconds: float) -> None:
        self.clock.now += seconds


@pytest.fixture(scope="module")
def reads(model_of: MakeModel) -> Reads:
    return Reads(model_of(LAYOUTS["full"]))


@pytest.fixture
def shelves(reads: Reads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelves:
    monkeypatch.setattr(folders, "LEFT_FREE", 0)
    return Shelves(reads, tmp_path / "prefixes")


def job(id: int, ids: bytes) -> Job:
    request, sampling = GenerationRequest(model="m"), Sampling()
    return Job(id, request, sampling, unpacked(ids), 9, False, StopStrings(()), ids=ids)


def settled(disk: Disk) -> Disk:
    assert disk._writer.settle(20)
    return disk


def look(disk: Disk, entries: list[Entry], *, idle: bool = True, times: int = 1) -> int:
    """How many are written by so many looks."""
    before = disk.stats.written
    for _ in range(times):
        disk._looked -= 10
        disk.tend(entries, idle=idle)
        settled(disk)
    return disk.stats.written - before


def read(disk: Disk, name: str) -> Read | None:
    came: queue.SimpleQueue[Read | None] = queue.SimpleQueue()
    disk.read(name, came.put)
    return came.get(timeout=20)


def find(disk: Disk, entry: Entry, owner: str = "", beyond: int = 0, most: int = 2**40) -> Any:
    """For a prompt that goes on behind the entry."""
    return disk.find(entry.ids + packed([9, 9]), owner, beyond=beyond, most=most)


def test_what_is_written_is_there_for_the_next_worker(shelves: Shelves) -> None:
    entry = shelves.entry(1)
    first = shelves.disk()
    assert look(first, [entry]) == 1
    assert entry.stored
    second = shelves.disk()
    name = find(second, entry)
    assert name is not None
    came = read(second, name)
    assert came is not None
    restored = second.restored(came)
    assert restored is not None
    assert restored.ids == entry.ids
    assert shelves.reads.goes_on(restored.caches) == shelves.reads.goes_on(entry.caches)
    assert second.stats.restored == 1
    assert find(shelves.disk("another key"), entry) is None


def test_when_what_is_written(shelves: Shelves) -> None:
    disk = shelves.disk()
    now = shelves.clock.now
    turn = shelves.entry(1, used=now)
    system = shelves.entry(2, kind="system", public=True, used=now)
    short, partial = shelves.entry(3, 200, used=0.0), shelves.entry(4, kind="partial", used=0.0)
    entries = [turn, system, short, partial]
    assert look(disk, entries, idle=False) == 0
    assert look(disk, entries, times=3) == 1
    assert system.stored
    shelves.later(6)
    assert look(disk, entries, idle=False) == 0
    assert look(disk, entries, times=3) == 1
    assert turn.stored
    other = shelves.entry(5)
    shelves.later(25)
    assert look(disk, [*entries, other], idle=False) == 1
    assert not short.stored
    assert not partial.stored


def test_what_is_worth_most_and_newest_goes_first(shelves: Shelves) -> None:
    disk = shelves.disk()
    old, new = shelves.entry(1, used=900.0), shelves.entry(2, used=950.0)
    system = shelves.entry(3, kind="system", public=True, used=800.0)
    kept = shelves.entry(4, kept=True, used=700.0)
    order = [old, new, system, kept]
    for expected in (kept, system, new, old):
        assert look(disk, order) == 1
        assert expected.stored
        order.remove(expected)


def test_a_longer_one_takes_the_place_of_its_owners(shelves: Shelves) -> None:
    disk = shelves.disk()
    tokens = tokens_of(1, 700)
    shorter = shelves.reads.entry(tokens[:300], owner="a")
    others = shelves.reads.entry(tokens[:310], owner="b")
    system = shelves.reads.entry(tokens[:260], kind="system", public=True)
    longer = shelves.reads.entry(tokens, owner="a")
    assert look(disk, [shorter, others], times=2) == 2
    assert look(disk, [system]) == 1
    assert look(disk, [longer]) == 1
    assert disk.stats.entries == 3
    assert len(list(shelves.root.rglob("*.prefix"))) == 3
    assert find(disk, shorter, "a") == find(disk, longer, "a")


def test_what_is_on_disk_but_for_a_little_is_not_written(shelves: Shelves) -> None:
    disk = shelves.disk()
    tokens = tokens_of(1, 400)
    system = shelves.reads.entry(tokens[:300], kind="system", public=True)
    assert look(disk, [system]) == 1
    assert look(disk, [shelves.reads.entry(tokens[:320], owner="a")]) == 0
    assert look(disk, [shelves.reads.entry(tokens[:364], owner="a")]) == 1


def test_nobody_is_given_anothers(shelves: Shelves) -> None:
    disk = shelves.disk()
    private = shelves.entry(1, owner="a")
    public = shelves.entry(2, owner="a", public=True, kind="system")
    assert look(disk, [private, public], times=2) == 2
    again = shelves.disk()
    for one in (disk, again):
        assert find(one, private, "a")
        assert find(one, private, "b") is None
        assert find(one, private) is None
        assert find(one, public, "b")


def test_what_is_not_worth_a_read_is_not_read(shelves: Shelves) -> None:
    disk = shelves.disk()
    entry = shelves.entry(1, 1200)
    assert look(disk, [entry]) == 1
    assert find(disk, entry, beyond=900)
    assert find(disk, entry, beyond=1000) is None
    assert find(disk, entry, most=1000) is None
    short = entry.ids[: 4 * 290] + packed([9] * 20)
    assert disk.find(short, "", beyond=0, most=2**40) is None  # most of it would be for nothing
    assert disk.find(entry.ids[: 4 * 600], "", beyond=0, most=2**40)


def test_only_whole_entries_serve_what_cannot_be_trimmed(
    model_of: MakeModel, shelves: Shelves
) -> None:
    reads = Reads(model_of(LAYOUTS["hybrid"]))
    own = Shelves(reads, shelves.root / "own", trimmable=False)
    disk = own.disk()
    entry, longer = own.entry(1, 300), own.entry(1, 600)
    assert look(disk, [entry, longer], times=2) == 2
    for one in (disk, own.disk()):
        assert one.find(entry.ids, "", beyond=0, most=2**40) is None
        name = one.find(longer.ids, "", beyond=0, most=2**40)
        assert name is not None
        assert (found := read(one, name)) is not None
        assert found.head.ids == entry.ids
        whole = find(one, longer)
        assert whole not in (None, name)


def test_what_is_evicted_is_written_as_far_as_it_may_wait(
    shelves: Shelves, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = shelves.disk()
    go = threading.Event()
    put = disk._stock.folder.put
    monkeypatch.setattr(
        disk._stock.folder, "put", lambda *arguments: (go.wait(20), put(*arguments))[1]
    )
    entries = [shelves.entry(n) for n in range(5)]
    for entry in entries:
        disk.evicted(entry, 400_000)
    assert 0 < disk.held <= 400_000
    disk.evicted(other := shelves.entry(9, 900), 400_000)
    go.set()
    settled(disk)
    assert 0 < disk.stats.written < 5
    assert disk.held == 0
    disk.evicted(other, 400_000)
    assert disk.held == 0
    assert not other.stored


def test_a_disk_is_not_worn(shelves: Shelves, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill, "BURST_BYTES", 400_000)
    monkeypatch.setattr(spill, "HOURLY_BYTES", 400_000)
    disk = shelves.disk()
    entries = [shelves.entry(n) for n in range(5)]
    assert look(disk, entries, times=5) == 2
    shelves.later(3600)
    more = [shelves.entry(n) for n in range(10, 13)]
    assert look(disk, more, times=3) == 2


def test_a_full_disk_costs_entries_and_is_told_once(
    shelves: Shelves, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = shelves.disk()
    put = disk._stock.folder.put

    def full(*arguments: Any) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(disk._stock.folder, "put", full)
    entries = [shelves.entry(n) for n in range(3)]
    assert look(disk, entries, times=3) == 0
    assert disk.stats.lost == 3
    lacks = "prefixes cannot be kept on disk: No space left on device"
    assert shelves.lacks == [lacks]
    monkeypatch.setattr(disk._stock.folder, "put", put)
    other = shelves.entry(7)
    assert look(disk, [other]) == 1
    assert shelves.lacks == [lacks, ""], "that it does again is told, too"


def test_what_was_not_tried_says_nothing_of_the_disk(
    shelves: Shelves, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has had as much as it is to have for now: that mends nothing."""
    shelves.root.write_text("in the way")
    disk = shelves.disk()
    assert look(disk, [shelves.entry(1)]) == 0
    monkeypatch.setattr(disk._writer._wear, "allows", lambda _: False)
    assert look(disk, [shelves.entry(2)]) == 0
    assert shelves.lacks == ["prefixes cannot be kept on disk: File exists"]


def test_a_disk_that_is_not_wanted_any_more_lacks_nothing(shelves: Shelves) -> None:
    shelves.root.write_text("in the way")
    disk = shelves.disk()
    entry = shelves.entry(1)
    assert look(disk, [entry]) == 0
    disk.apply(0, [entry])
    settled(disk)
    assert shelves.lacks == ["prefixes cannot be kept on disk: File exists", ""]


@pytest.mark.parametrize("ends", [False, True])
def test_what_a_disk_did_not_take_is_written_once_it_does(shelves: Shelves, *, ends: bool) -> None:
    shelves.root.write_text("in the way")
    disk = shelves.disk()
    entry = shelves.entry(1, kind="system")
    assert look(disk, [entry], times=3) == 0
    assert disk.stats.lost == 1, "it is not tried at every look"
    shelves.root.unlink()
    if ends:
        disk.close([entry], 20)
    else:
        shelves.later(writer.AGAIN_SECONDS)
        assert look(disk, [entry]) == 1
    assert len(list(shelves.root.rglob("*.prefix"))) == 1


def test_what_was_not_written_has_worn_no_disk(
    shelves: Shelves, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spill, "BURST_BYTES", 400_000)
    shelves.root.write_text("in the way")
    disk = shelves.disk()
    look(disk, [shelves.entry(n) for n in range(5)], times=5)
    shelves.root.unlink()
    assert look(disk, [shelves.entry(7)]) == 1


def test_what_is_damaged_goes_and_is_told(shelves: Shelves) -> None:
    disk = shelves.disk()
    entries = [shelves.entry(n) for n in range(2)]
    assert look(disk, entries, times=2) == 2
    for file, at in zip(sorted(shelves.root.rglob("*.prefix")), (20, -1000), strict=True):
        content = bytearray(file.read_bytes())
        content[at] ^= 1
        file.write_bytes(content)
    again = shelves.disk()
    assert again._reader.listed.wait(20)
    assert again.stats.entries == again.stats.damaged == 1
    (name,) = filter(None, (find(again, entry) for entry in entries))
    assert read(again, name) is None
    assert again.stats.damaged == 2
    assert shelves.told == [DAMAGED] * 2
    assert list(shelves.root.rglob("*.prefix")) == []


def test_what_is_another_models_is_none(shelves: Shelves, model_of: MakeModel) -> None:
    """Whoever puts a file there under this key."""
    disk = shelves.disk()
    entry = shelves.entry(1)
    assert look(disk, [entry]) == 1
    strangers = Shelves(Reads(model_of(LAYOUTS["hybrid"])), shelves.root).disk()
    assert find(strangers, entry) is None
    assert strangers.stats.damaged == 1


def test_off_removes_what_is_there_and_writes_none(shelves: Shelves) -> None:
    disk = shelves.disk()
    entry, other = shelves.entry(1), shelves.entry(2)
    assert look(disk, [entry]) == 1
    disk.apply(0, [entry, other])
    settled(disk)
    assert list(shelves.root.rglob("*.prefix")) == []
    disk.evicted(other, 2**30)
    assert look(disk, [entry, other], times=2) == 0
    assert find(disk, entry) is None
    disk.apply(None, [entry, other])
    assert look(disk, [entry, other], times=2) == 2
    started_off = shelves.disk(budget=0)
    settled(started_off)
    assert list(shelves.root.rglob("*.prefix")) == []


def test_cleared_is_gone_and_may_be_written_again(shelves: Shelves) -> None:
    disk = shelves.disk()
    entry = shelves.entry(1)
    assert look(disk, [entry]) == 1
    disk.clear([entry])
    settled(disk)
    assert disk.stats.entries == disk.stats.nbytes == 0
    assert list(shelves.root.rglob("*.prefix")) == []
    assert look(disk, [entry]) == 1


def test_what_comes_behind_a_wish_to_clear_is_not_cleared(shelves: Shelves) -> None:
    """The writer may have something else to do meanwhile."""
    old, new = shelves.entry(1), shelves.entry(2)
    look(shelves.disk(), [old])
    disk = Disk(
        Folder(shelves.root, "key"), Layout(shelves.reads.caches([3])),
        trimmable=True, clock=shelves.clock,
    )  # fmt: skip
    disk.clear([old])
    disk.tend([new], idle=True)
    assert new.stored
    disk.start()
    settled(disk)
    assert find(disk, new) is not None
    assert len(list(shelves.root.rglob("*.prefix"))) == 1


@pytest.mark.parametrize("busy", ["put", "clear"])
def test_a_wish_to_clear_while_another_is_followed_is_followed(
    shelves: Shelves, monkeypatch: pytest.MonkeyPatch, busy: str
) -> None:
    """The writer clears, or writes already what came behind the first."""
    entry = shelves.entry(1)
    disk = Disk(
        Folder(shelves.root, "key"), Layout(shelves.reads.caches([3])),
        trimmable=True, clock=shelves.clock,
    )  # fmt: skip
    work, wishes = getattr(disk._stock.folder, busy), [entry]

    def work_meanwhile(*arguments: Any) -> Any:
        if wishes:
            disk.clear([wishes.pop()])
        return work(*arguments)

    disk.clear([entry])
    disk.tend([entry], idle=True)
    assert entry.stored
    monkeypatch.setattr(disk._stock.folder, busy, work_meanwhile)
    disk.start()
    settled(disk)
    assert not wishes
    assert find(disk, entry) is None
    assert list(shelves.root.rglob("*.prefix")) == []


def test_at_the_end_what_is_worth_most_is_written_in_the_time_that_there_is(
    shelves: Shelves, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = shelves.disk()
    entries = [shelves.entry(n, used=1000.0 + n) for n in range(3)]
    disk.close(entries, 20)
    assert disk.stats.written == 3
    slow = shelves.disk("slow")
    monkeypatch.setattr(slow._stock.folder, "put", lambda *arguments: time.sleep(30))
    began = time.monotonic()
    slow.close([shelves.entry(n) for n in range(3)], 0.2)
    assert time.monotonic() - began < 15


def test_what_is_of_use_in_memory_stays_on_disk(shelves: Shelves) -> None:
    disk = shelves.disk()
    entry = shelves.entry(1)
    assert look(disk, [entry]) == 1
    (file,) = shelves.root.rglob("*.prefix")
    os.utime(file, (1, 1))
    entry.used = shelves.clock.now + 5
    shelves.later(10)
    look(disk, [entry])
    deadline = time.monotonic() + 10
    while file.stat().st_mtime == 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert file.stat().st_mtime > 1


def test_a_disk_that_hangs_is_waited_for_once(
    shelves: Shelves, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = shelves.entry(1)
    assert look(shelves.disk(), [entry]) == 1
    go = threading.Event()

    def hangs(stream: Any) -> None:
        go.wait(20)
        raise OSError

    monkeypatch.setattr(files, "read_head", hangs)
    hung = shelves.disk()
    began = time.monotonic()
    assert [find(hung, entry) for _ in range(4)] == [None] * 4
    assert time.monotonic() - began < 3
    go.set()


def test_nobody_waits_behind_a_read_that_hangs(
    shelves: Shelves, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = shelves.disk()
    entry = shelves.entry(1)
    assert look(disk, [entry]) == 1
    monkeypatch.setattr(reader, "LONGEST_SECONDS", 0.05)
    go = threading.Event()
    monkeypatch.setattr(files, "read_arrays", lambda *arguments: go.wait(20) and [])
    name = find(disk, entry)
    assert name is not None
    came: queue.SimpleQueue[Read | None] = queue.SimpleQueue()
    disk.read(name, came.put)
    time.sleep(0.2)
    assert find(disk, entry) is None
    go.set()
    came.get(timeout=20)
    deadline = time.monotonic() + 10
    while find(disk, entry) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert find(disk, entry) == name


def test_a_read_for_which_there_is_no_memory_is_none(
    shelves: Shelves, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = shelves.disk()
    entry = shelves.entry(1)
    assert look(disk, [entry]) == 1

    def fails(*arguments: Any) -> None:
        raise RuntimeError("[malloc] Unable to allocate 1 bytes.")

    monkeypatch.setattr(files, "read_arrays", fails)
    name = find(disk, entry)
    assert name is not None
    assert read(disk, name) is None
    assert disk.stats.lost == 1


def test_what_had_to_make_room_is_not_taken_for_there(shelves: Shelves) -> None:
    entry = shelves.entry(1)
    disk = shelves.disk()
    assert look(disk, [entry]) == 1
    disk.apply(2 * disk.stats.nbytes)
    assert look(disk, [shelves.entry(2, 500)]) == 1
    assert disk.stats.entries == 1
    assert find(disk, entry) is None
    look(disk, [entry], times=2)
    assert find(disk, entry) is not None


def test_what_somebody_removed_is_written_again(shelves: Shelves) -> None:
    disk = shelves.disk()
    entry = shelves.entry(1)
    assert look(disk, [entry]) == 1
    (file,) = shelves.root.rglob("*.prefix")
    file.unlink()
    entry.used = shelves.clock.now + 5
    shelves.later(10)
    deadline = time.monotonic() + 10
    while not file.exists() and time.monotonic() < deadline:
        look(disk, [entry])
    assert file.exists()


def test_what_came_back_before_the_engine_broke_comes_no_more(shelves: Shelves) -> None:
    disk = shelves.disk()
    entry, other = shelves.entry(1), shelves.entry(2)
    assert look(disk, [entry, other], times=2) == 2
    name = find(disk, entry)
    assert name is not None
    came = read(disk, name)
    assert came is not None
    assert disk.restored(came) is not None
    disk.distrust()
    assert find(disk, entry) is None
    assert find(disk, other) is not None
    deadline = time.monotonic() + 10
    while len(list(shelves.root.rglob("*.prefix"))) > 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(list(shelves.root.rglob("*.prefix"))) == 1


def test_what_is_forgotten_while_it_is_read_is_not_kept(shelves: Shelves) -> None:
    from mlxd.worker.prefix.store import Store

    disk = shelves.disk()
    entry = shelves.entry(1)
    assert look(disk, [entry]) == 1
    for forgets in (True, False):
        came: queue.SimpleQueue[Fetched] = queue.SimpleQueue()
        store = Store(trimmable=True, limit=2**30)
        backing = Backing(store, disk, Keeping(), came.put)
        assert backing.wait(job(1, ids=entry.ids + packed([9, 9])))
        assert backing.is_awaited
        if forgets:
            backing.forget()
        assert [one.id for one in backing.arrived(came.get(timeout=20))] == [1]
        assert len(store) == (0 if forgets else 1)


def test_what_a_killed_one_left_goes_and_a_lowered_budget_is_kept_at_once(shelves: Shelves) -> None:
    disk = shelves.disk()
    entries = [shelves.entry(n) for n in range(2)]
    assert look(disk, entries, times=2) == 2
    (left := shelves.root / "key" / ".a.prefix.1-2").write_bytes(b"half")
    again = shelves.disk()
    deadline = time.monotonic() + 10
    while left.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left.exists()
    assert again._reader.listed.wait(20)
    again.apply(again.stats.nbytes * 3 // 4)
    while again.stats.entries > 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(list(shelves.root.rglob("*.prefix"))) == 1
