"""`models.preload` edited while the daemon serves: what is listed is there, or says why not."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.talking import ENDLESS, cached, eventually, gone, held, say, workers_of
from tests.support.daemon import Daemon
from tests.support.model_maker import make_hollow

pytestmark = pytest.mark.mlx

Start = Callable[..., Daemon]
_STARTED = re.compile(r"worker for (\S+) started")
MORE_THAN_ANY = 1 << 42
"""Bytes; no machine has so much memory."""
_SECONDS = 60.0
"""For some loads, one after the other, on a machine with other work."""


def listed(*names: str, dirs: Path, also: str = "") -> str:
    return f"dirs: [{dirs}]\npreload: [{', '.join(names)}]\n{also}"


def edit(daemon: Daemon, text: str) -> None:
    """Save models.yaml and have it in force."""
    daemon.edit("models", text)
    outcome = daemon.reload()
    assert outcome["result"] in ("applied", "unchanged"), outcome  # the watcher may be first


def until_loaded(daemon: Daemon, *names: str) -> None:
    """Until these, and no others, are in memory."""

    def loaded() -> bool:
        found = cached(daemon)
        return set(found) == set(names) and not any(m["is_loading"] for m in found.values())

    eventually(loaded, f"loaded: {names}", within=_SECONDS)


def until_warned(daemon: Daemon, name: str) -> str:
    """Until /health says that a listed name is not loaded; returns the warning."""

    def warning() -> str | None:
        start = f"models.preload: '{name}'"
        return next((w for w in daemon.health()["warnings"] if w.startswith(start)), None)

    return str(eventually(warning, f"a warning about {name}", within=_SECONDS))


def until_content(daemon: Daemon) -> None:
    """Until /health warns of no listed name."""

    def content() -> bool:
        return not any(w.startswith("models.preload") for w in daemon.health()["warnings"])

    eventually(content, "no warning about a listed name")


@pytest.mark.slow
def test_added_names_are_loaded_in_the_order_of_the_list(start: Start, zoo: Path) -> None:
    daemon = start({"models": listed("tiny-b", dirs=zoo)})
    until_loaded(daemon, "tiny-b")
    before = workers_of(daemon)
    edit(daemon, listed("tiny-short", "tiny-b", "tiny-a", dirs=zoo))
    until_loaded(daemon, "tiny-b", "tiny-short", "tiny-a")
    assert _STARTED.findall(daemon.log_text()) == ["tiny-b", "tiny-short", "tiny-a"]
    edit(daemon, listed("tiny-a", "tiny-b", "tiny-short", dirs=zoo))
    assert say(daemon, "tiny-b", "x", tokens=1)
    assert before.items() <= workers_of(daemon).items()
    until_content(daemon)


@pytest.mark.slow
def test_a_removed_name_stays_for_its_streams_and_goes_when_its_time_is_over(
    start: Start, zoo: Path
) -> None:
    also = "defaults: {ttl: 100ms}\n"
    daemon = start({"models": listed("tiny-b", ENDLESS, dirs=zoo, also=also)})
    until_loaded(daemon, "tiny-b", ENDLESS)
    before = workers_of(daemon)
    with held(daemon, ENDLESS) as stream:
        edit(daemon, listed("tiny-b", dirs=zoo, also=also))
        stream.read(50)
        assert workers_of(daemon) == before
    eventually(lambda: gone(before[ENDLESS]), "the removed one is unloaded", within=_SECONDS)
    assert workers_of(daemon) == {"tiny-b": before["tiny-b"]}, "a listed one does not idle out"


@pytest.mark.parametrize("limit", ["max_loaded", "max_loaded_bytes"])
@pytest.mark.slow
def test_a_name_that_does_not_fit_is_skipped_and_loaded_once_the_limit_is_raised(
    start: Start, zoo: Path, limit: str
) -> None:
    one = (zoo / "tiny-a" / "model.safetensors").stat().st_size
    room = {
        "max_loaded": (2, 3),
        "max_loaded_bytes": (f"{one * 5 // 2048}KiB", f"{one // 256}KiB"),
    }[limit]
    names = ("tiny-a", "tiny-b", "tiny-short")
    daemon = start({"models": listed(*names, dirs=zoo, also=f"{limit}: {room[0]}\n")})
    assert f"models.{limit}" in until_warned(daemon, "tiny-short")
    until_loaded(daemon, "tiny-a", "tiny-b")
    before = workers_of(daemon)
    edit(daemon, listed(*names, dirs=zoo, also=f"{limit}: {room[1]}\n"))
    until_loaded(daemon, *names)
    until_content(daemon)
    assert before.items() <= workers_of(daemon).items(), "none was loaded again"


def test_a_name_that_memory_has_no_room_for_is_skipped_and_says_what_it_needs(
    start: Start, models: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(models, folder)
    make_hollow(folder / "tiny-a", MORE_THAN_ANY)
    daemon = start({"models": listed("tiny-a", "tiny-b", dirs=folder)})
    why = until_warned(daemon, "tiny-a")
    assert "available" in why
    assert max(int(number) for number in re.findall(r"\d+", why)) >= MORE_THAN_ANY
    until_loaded(daemon, "tiny-b")
    edit(daemon, listed("tiny-b", dirs=folder))
    until_content(daemon)


@pytest.mark.slow
def test_a_broken_name_is_skipped_and_loaded_once_it_is_mended(
    start: Start, models: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(models, folder)
    weights = folder / "tiny-a" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:500])
    daemon = start({"models": listed("tiny-a", "tiny-b", dirs=folder)})
    until_warned(daemon, "tiny-a")
    until_loaded(daemon, "tiny-b")
    before = workers_of(daemon)
    weights.write_bytes(whole)
    edit(daemon, listed("tiny-b", "tiny-a", dirs=folder))
    until_loaded(daemon, "tiny-b", "tiny-a")
    until_content(daemon)
    assert before.items() <= workers_of(daemon).items()
