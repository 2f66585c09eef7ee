"""The first policies of a run: R3."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxd.policy.boot import boot
from mlxd.policy.load import PolicyErrors
from tests.policy.conftest import Ground, slots


async def test_broken_files_start_on_the_last_good_ones(ground: Ground) -> None:
    ground.write(limits=slots(9))
    await ground.start().begin()
    ground.write(limits=slots("nine"))
    reloader = ground.start()
    assert (ground.slots, ground.current.origin, ground.current.generation) == (9, "lkg", 1)
    assert not reloader.last.ok
    assert 'got "nine"' in str(reloader.last.errors[0])
    ground.write(limits=slots(10))
    await reloader.look()
    assert (ground.slots, ground.current.origin) == (10, "files")


async def test_mending_the_files_to_the_same_values_ends_the_fallback(ground: Ground) -> None:
    ground.write(limits=slots(9))
    await ground.start().begin()
    ground.write(limits=slots("nine"))
    reloader = ground.start()
    ground.write(limits=slots(9))
    await reloader.look()
    assert (ground.current.origin, ground.current.generation) == ("files", 1)
    assert reloader.last.ok


async def test_a_strict_boot_refuses(ground: Ground) -> None:
    ground.write(limits=slots(9))
    await ground.start().begin()
    ground.write(limits=slots("nine"))
    with pytest.raises(PolicyErrors):
        boot(ground.folder, [], ground.history, strict=True)


async def test_the_last_good_files_of_another_folder_do_not_count(
    ground: Ground, tmp_path: Path
) -> None:
    await ground.start().begin()
    with pytest.raises(PolicyErrors, match=r"No such file"):
        boot(tmp_path / "misspelt", [], ground.history)


async def test_without_any_good_files_broken_ones_are_refused(ground: Ground) -> None:
    ground.write(limits=slots("nine"))
    with pytest.raises(PolicyErrors):
        boot(ground.folder, [], ground.history)


async def test_an_older_generation_serves_where_this_version_refuses_the_newest(
    ground: Ground,
) -> None:
    ground.write(limits=slots(7))
    reloader = ground.start()
    await reloader.begin()
    ground.write(limits=slots(8))
    await reloader.reload("admin")
    newest = ground.history.folder / "00000002.json"
    newest.write_text(newest.read_text().replace("max_in_flight", "max_in_flite"))
    ground.write(limits=slots("nine"))
    ground.start()
    assert (ground.slots, ground.current.generation) == (7, 1)


async def test_the_same_values_are_the_same_generation_after_a_restart(ground: Ground) -> None:
    reloader = ground.start()
    await reloader.begin()
    ground.write(limits=slots(8))
    await reloader.reload("admin")
    await ground.start().begin()
    assert ground.current.generation == 2
    kept = ground.history.get(2)
    assert kept is not None
    assert [change["new"] for change in kept.changes] == ["8"]  # how it came is not forgotten
    ground.write(limits=slots(9))
    await ground.start().begin()
    assert ground.current.generation == 3


async def test_what_was_edited_between_two_runs_is_kept_as_a_change(ground: Ground) -> None:
    ground.write(limits=slots(7))
    await ground.start().begin()
    ground.write(limits=slots(8))
    await ground.start().begin()
    kept = ground.history.get(2)
    assert kept is not None
    assert [(one["key"], one["old"], one["new"]) for one in kept.changes] == [
        ("limits.concurrency.max_in_flight", "7", "8")
    ]
    assert kept.trigger == "start"


async def test_files_that_only_another_version_accepts_are_compared_with_nothing(
    ground: Ground,
) -> None:
    ground.write(limits=slots(7))
    await ground.start().begin()
    first = ground.history.folder / "00000001.json"
    first.write_text(first.read_text().replace("max_in_flight", "max_in_flite"))
    ground.write(limits=slots(8))
    await ground.start().begin()
    kept = ground.history.get(2)
    assert kept is not None
    assert kept.changes == ()


async def test_a_history_that_cannot_be_written_is_a_warning(ground: Ground) -> None:
    ground.history.folder.parent.write_text("in the way")
    reloader = ground.start()
    await reloader.begin()
    assert "could not be kept" in reloader.history_failure
    ground.write(limits=slots(8))
    assert (await reloader.reload("admin")).result == "applied"
