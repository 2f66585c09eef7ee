"""Taking a change back: R15."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from mlxd.core.errors import PolicyConflict, PolicyOutOfDate
from mlxd.policy import settle
from tests.policy.conftest import Breaks, Ground, slots


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """With files that are gone: whether they come back is another file's test."""
    monkeypatch.setattr(settle, "VANISHED_SECONDS", 0.1)


async def three_generations(ground: Ground) -> Any:
    ground.write(limits="# the first\n" + slots(1))
    reloader = ground.start()
    await reloader.begin()
    for number in (2, 3):
        ground.write(limits=slots(number), timeouts=f"queue: {number}s\n")
        await reloader.reload("admin")
    return reloader


async def test_it_writes_the_files_back_verbatim_as_a_new_generation(ground: Ground) -> None:
    reloader = await three_generations(ground)
    outcome = await reloader.rollback(1, "uid 0")
    assert (outcome.result, outcome.generation, outcome.trigger) == ("applied", 4, "rollback")
    assert (ground.folder / "limits.yaml").read_text() == (
        "schema: mlxd/v1\n# the first\n" + slots(1)
    )
    assert not (ground.folder / "timeouts.yaml").exists()
    assert ground.slots == 1
    assert await reloader.look() is None  # its own writing is no news
    assert ground.history.numbers() == [1, 2, 3, 4]
    assert (await reloader.rollback(3)).result == "applied"
    assert ground.slots == 3


async def test_all_of_it_is_on_the_disk_before_the_note_of_it_goes(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut the note may be gone for good, and a new name not there yet."""
    reloader = await three_generations(ground)
    elsewhere = tmp_path / "elsewhere" / "limits.yaml"
    elsewhere.parent.mkdir()
    (ground.folder / "limits.yaml").rename(elsewhere)
    (ground.folder / "limits.yaml").symlink_to(elsewhere)
    done: list[object] = []
    fsync, unlink = os.fsync, Path.unlink

    def synced(descriptor: int) -> None:
        fsync(descriptor)
        done.append(os.fstat(descriptor).st_ino)

    def removed(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok)
        done.append(path.name)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "unlink", removed)
    await reloader.rollback(1)
    before = done[: done.index("writing.json")]
    assert "timeouts.yaml" in before
    after_it = before[before.index("timeouts.yaml") :]
    assert {ground.folder.stat().st_ino, elsewhere.parent.stat().st_ino} <= {*after_it}


async def test_it_refuses_to_lose_an_edit_that_is_not_in_force(ground: Ground) -> None:
    reloader = await three_generations(ground)
    ground.write(limits=slots("oops"))
    with pytest.raises(PolicyConflict, match=r"limits\.yaml changed and not in force"):
        await reloader.rollback(1)
    assert "oops" in (ground.folder / "limits.yaml").read_text()
    assert (await reloader.rollback(1, force=True)).result == "applied"
    assert ground.slots == 1
    assert reloader.last.ok


async def test_a_generation_that_is_not_kept_is_named_with_those_that_are(ground: Ground) -> None:
    reloader = await three_generations(ground)
    with pytest.raises(PolicyConflict, match=r"generation 9 is not kept; kept are 1, 2, 3"):
        await reloader.rollback(9)


async def test_who_has_not_seen_the_policies_in_force_changes_nothing(ground: Ground) -> None:
    reloader = await three_generations(ground)
    seen = ground.current.etag
    await reloader.rollback(1, etag=seen)
    for attempt in (reloader.rollback(2, etag=seen), reloader.reload("admin", etag=seen)):
        with pytest.raises(PolicyOutOfDate, match=r"policies in force are"):
            await attempt
    assert ground.slots == 1


async def test_the_files_of_another_folder_are_not_written_into_this_one(
    ground: Ground, tmp_path: Path
) -> None:
    await three_generations(ground)
    other = Ground(tmp_path / "other", ground.history, [])
    other.write(limits=slots(7))
    reloader = other.start()
    with pytest.raises(PolicyConflict, match="generation 1 was of"):
        await reloader.rollback(1, force=True)


async def test_a_generation_without_files_removes_none_unasked(ground: Ground) -> None:
    reloader = ground.start()
    await reloader.begin()
    ground.write(limits=slots(2))
    await reloader.reload("admin")
    with pytest.raises(PolicyConflict, match=r"--force removes those that are there"):
        await reloader.rollback(1)
    assert (ground.folder / "limits.yaml").exists()


async def test_one_that_cannot_be_prepared_writes_nothing(ground: Ground) -> None:
    reloader = await three_generations(ground)
    reloader.use(Breaks("prepare"))
    text = (ground.folder / "limits.yaml").read_bytes()
    assert (await reloader.rollback(1)).result == "refused"
    assert (ground.folder / "limits.yaml").read_bytes() == text
    assert reloader.last.ok  # the folder's files are in force as before


async def test_a_commit_that_fails_writes_the_present_files_again(ground: Ground) -> None:
    reloader = await three_generations(ground)
    reloader.use(Breaks("commit"))
    before = {file.name: file.read_bytes() for file in ground.folder.iterdir()}
    assert (await reloader.rollback(1)).result == "refused"
    assert {file.name: file.read_bytes() for file in ground.folder.iterdir()} == before


async def test_one_that_is_refused_leaves_an_edit_that_waits_for_its_port_waiting(
    ground: Ground,
) -> None:
    reloader = await three_generations(ground)
    applier = Breaks("prepare")
    reloader.use(applier)
    ground.write(server="listen: {port: 11500}\n")
    await reloader.look()
    assert (await reloader.rollback(1, force=True)).result == "refused"
    applier._where = ""
    outcome = await reloader.look()
    assert outcome is not None
    assert ground.current.server.listen.port == 11500
