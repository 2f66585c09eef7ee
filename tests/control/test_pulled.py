"""What is left of models that nobody pulls any more."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

import pytest

from mlxd.control.pulled import MOST_PARTIAL, PARTIAL_SECONDS, PulledModels
from mlxd.core.manifest import PARTIAL


@pytest.fixture
def pulled(tmp_path: Path) -> PulledModels:
    return PulledModels(tmp_path / "models")


def part(pulled: PulledModels, name: str, seconds_ago: float) -> Path:
    """Of a model, last added to so long ago."""
    folder = pulled.folder / PARTIAL / "org" / name
    (folder / "blobs").mkdir(parents=True)
    (folder / "blobs" / "sha256-1").write_text("half")
    (folder / "lock").touch()
    then = time.time() - seconds_ago
    for path in (folder / "blobs" / "sha256-1", folder / "blobs", folder):
        os.utime(path, (then, then))
    return folder


def parts(pulled: PulledModels) -> set[str]:
    return {one.name for one in (pulled.folder / PARTIAL).glob("*/*")}


def test_what_nobody_goes_on_with_is_removed(pulled: PulledModels) -> None:
    part(pulled, "old", PARTIAL_SECONDS + 60)
    part(pulled, "Pulled", PARTIAL_SECONDS + 60)
    part(pulled, "new", PARTIAL_SECONDS - 60)
    pulled.tidy({"org/pulled"})
    assert parts(pulled) == {"Pulled", "new"}


def test_of_many_the_latest_are_kept(pulled: PulledModels) -> None:
    for number in range(MOST_PARTIAL + 3):
        part(pulled, str(number), 60.0 * number)
    pulled.tidy(set())
    assert parts(pulled) == {str(number) for number in range(MOST_PARTIAL)}


def test_one_that_a_process_holds_is_left(pulled: PulledModels) -> None:
    held = part(pulled, "held", PARTIAL_SECONDS + 60)
    with (held / "lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        pulled.tidy(set())
        assert parts(pulled) == {"held"}
    pulled.tidy(set())
    assert not (pulled.folder / PARTIAL / "org").exists()


def test_where_nothing_was_pulled_there_is_nothing_to_do(pulled: PulledModels) -> None:
    pulled.tidy(set())
    assert not pulled.folder.exists()
