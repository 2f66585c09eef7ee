"""When a daemon that keeps dying is held, and what lets it go: on a clock that is moved by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mlxd.core import starts
from mlxd.core.clock import ManualClock
from mlxd.core.starts import StartLedger, Starts

FIVE_SECONDS_APART = 5.0
MOST = 10


def ledger(state: Path, clock: ManualClock, most: int = MOST) -> StartLedger:
    begun = StartLedger(state, clock, most)
    begun.begin()
    return begun


def crash(state: Path, clock: ManualClock, times: int, *, apart: float = 5.0) -> StartLedger:
    """Runs that die `apart` seconds after their start; returns the run after the last of them."""
    for _ in range(times):
        run = ledger(state, clock)
        live(run, clock, apart)
    return ledger(state, clock)


def live(run: StartLedger, clock: ManualClock, seconds: float) -> None:
    """It does in this time what the daemon has it do, and its notes reach the disk."""
    until = clock.now + seconds
    while (due := run.due()) is not None and clock.now + due <= until:
        clock.advance(due)
        run.advance()
        run.save()
    clock.now = until


@pytest.mark.parametrize(
    ("times", "held"), [(0, False), (1, False), (9, False), (10, False), (11, True), (12, True)]
)
def test_more_unclean_starts_than_the_policy_allows_hold_it(
    tmp_path: Path, times: int, held: bool
) -> None:
    run = crash(tmp_path, ManualClock(), times)
    assert (run.held, run.starts.unclean) == (held, times)
    assert bool(run.reason) == held


@pytest.mark.parametrize(("most", "held_at"), [(1, 2), (2, 3), (4, 5), (10, 11)])
def test_the_policy_says_how_many(tmp_path: Path, most: int, held_at: int) -> None:
    clock = ManualClock()
    found = []
    for _ in range(held_at + 1):
        found.append(ledger(tmp_path, clock, most).held)
        clock.advance(1)
    assert found == [False] * held_at + [True]


def test_starts_that_are_rare_do_not_hold_it(tmp_path: Path) -> None:
    """Every run dies within a minute, and the next comes fifteen minutes later: four an hour."""
    clock = ManualClock()
    for unclean in range(40):
        run = ledger(tmp_path, clock)
        assert (run.held, run.starts.unclean) == (False, unclean)
        clock.advance(901)


def test_five_an_hour_hold_it_once_the_allowance_is_spent(tmp_path: Path) -> None:
    clock = ManualClock()
    for _ in range(MOST + 5):
        assert not ledger(tmp_path, clock).held
        clock.advance(1000)
    found = []
    for _ in range(4):
        found.append(ledger(tmp_path, clock).held)
        clock.advance(600)
    assert found == [False, False, True, True], "two of an hour ago count as well"


@pytest.mark.parametrize(("seconds", "unclean"), [(59.9, 1), (60.0, 0), (600.0, 0)])
def test_a_run_of_a_minute_is_no_unclean_one(tmp_path: Path, seconds: float, unclean: int) -> None:
    clock = ManualClock()
    live(ledger(tmp_path, clock), clock, seconds)
    assert ledger(tmp_path, clock).starts.unclean == unclean


def test_a_run_of_a_minute_breaks_the_series(tmp_path: Path) -> None:
    clock = ManualClock()
    live(crash(tmp_path, clock, MOST), clock, 60.0)
    assert crash(tmp_path, clock, 5).starts.unclean == 5


def test_an_end_that_was_asked_for_breaks_the_series(tmp_path: Path) -> None:
    clock = ManualClock()
    run = crash(tmp_path, clock, MOST)
    run.asked_to_end()
    run.save()
    assert ledger(tmp_path, clock).starts.unclean == 0


@pytest.mark.parametrize("asked", [True, False])
def test_a_hold_outlives_ends_that_were_asked_for_and_runs_of_any_length(
    tmp_path: Path, asked: bool
) -> None:
    """A program that restarts what is not ready must not end it."""
    clock = ManualClock()
    run = crash(tmp_path, clock, MOST + 1)
    for _ in range(5):
        live(run, clock, 120.0)
        assert run.held
        if asked:
            run.asked_to_end()
            run.save()
        run = ledger(tmp_path, clock)
        assert (run.held, run.starts.unclean) == (True, MOST + 1)


def test_a_quiet_hour_ends_the_hold_of_a_running_daemon(tmp_path: Path) -> None:
    clock = ManualClock()
    run = crash(tmp_path, clock, MOST + 1)
    live(run, clock, 3599.0)
    assert run.held
    assert run.due() == pytest.approx(1.0)
    clock.advance(1.0)
    assert run.advance() is True
    assert (run.due(), run.reason) == (None, "")
    run.save()
    assert ledger(tmp_path, clock).starts == Starts(running=True)


def test_an_hour_in_which_the_machine_sleeps_is_quiet_too(tmp_path: Path) -> None:
    """The monotonic clock stands still meanwhile."""
    clock = ManualClock()
    run = crash(tmp_path, clock, MOST + 1)
    live(run, clock, 600.0)
    clock.epoch += 2990.0
    assert run.due() == pytest.approx(10.0)
    assert run.advance() is False
    clock.epoch += 10.0
    assert run.due() == 0.0
    assert run.advance() is True


def test_an_hour_without_a_daemon_is_quiet_too(tmp_path: Path) -> None:
    clock = ManualClock()
    crash(tmp_path, clock, MOST + 1)
    clock.advance(3601)
    assert ledger(tmp_path, clock).starts.unclean == 1


def test_a_reset_ends_it_and_this_run_counts_from_there(tmp_path: Path) -> None:
    clock = ManualClock()
    run = crash(tmp_path, clock, MOST + 1)
    assert run.reset() is True
    assert (run.held, run.reason) == (False, "")
    assert run.reset() is False
    run.save()
    clock.advance(1)
    assert ledger(tmp_path, clock).starts.unclean == 1


def test_a_reset_without_a_daemon(tmp_path: Path) -> None:
    crash(tmp_path, ManualClock(), MOST + 1)
    assert starts.reset(tmp_path) is True
    assert starts.reset(tmp_path) is False
    assert not ledger(tmp_path, ManualClock()).held


@pytest.mark.parametrize("hours", [-24, -1, 1, 24])
def test_a_clock_that_is_set_neither_holds_nor_keeps_held(tmp_path: Path, hours: int) -> None:
    clock = ManualClock()
    run = crash(tmp_path, clock, 3)
    clock.epoch += 3600.0 * hours
    live(run, clock, 61.0)
    assert (run.held, run.starts.unclean) == (False, 0)
    run = crash(tmp_path, clock, MOST + 1)
    assert run.held
    clock.epoch += 3600.0 * hours
    live(run, clock, 3600.0)
    assert not run.held


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", "7", "{}", '{"schema": 2}', "\x00\xff",
        '{"schema": 1, "unclean": "many", "recent": [], "held": false, "running": true}',
        '{"schema": 1, "unclean": 1, "recent": ["x"], "held": false, "running": true}',
        '{"schema": 1, "unclean": 1e999, "recent": [], "held": false, "running": true}',
        "[" * 100_000,
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_set_aside(tmp_path: Path, text: str) -> None:
    file = tmp_path / "starts.json"
    file.write_text(text, encoding="latin-1")
    assert ledger(tmp_path, ManualClock()).starts == Starts(running=True)
    (lies_aside,) = tmp_path.glob("starts.json.set-aside-*")
    assert lies_aside.read_text(encoding="latin-1") == text
    assert json.loads(file.read_text())["schema"] == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 2}'])
def test_who_only_looks_moves_nothing(tmp_path: Path, text: str) -> None:
    """The folder may be a running daemon's."""
    assert starts.look(tmp_path) == Starts()
    (tmp_path / "starts.json").write_text(text)
    assert starts.look(tmp_path) == Starts()
    assert [file.name for file in tmp_path.iterdir()] == ["starts.json"]


def test_a_disk_that_takes_nothing_costs_the_note_and_nothing_else(tmp_path: Path) -> None:
    run = StartLedger(tmp_path / "nowhere", ManualClock(), MOST)
    with pytest.raises(OSError, match="No such file"):
        run.begin()
    assert run.starts == Starts(running=True)
    assert run.due() == 60.0


def test_the_file_is_private_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    ledger(tmp_path, ManualClock())
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


def test_only_as_much_is_kept_as_is_judged_by() -> None:
    series = Starts(running=True)
    for second in range(1000):
        series = replace(series.begun(float(second), MOST), running=True)
    assert series.unclean == 1000
    assert len(series.recent) == starts.PER_HOUR
