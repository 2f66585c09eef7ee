"""The daemon's decisions, the last of them, in order, and those who follow them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import pytest

from mlxd.core.clock import ManualClock
from mlxd.policy.strict_yaml import dotted
from mlxd.telemetry.events import KEPT, RUN_IDS, Event, Events, Lost, Record, ids_after

START = 7 * RUN_IDS


@pytest.fixture
def events() -> Events:
    return Events(ManualClock(), START)


def fill(events: Events, count: int, type: str = "load") -> None:
    for number in range(count):
        events.record(type, str(number))


def told(records: Sequence[Record]) -> list[str | int | None]:
    """The message of each event, and how many a `Lost` stands for."""
    return [one.count if isinstance(one, Lost) else one.message for one in records]


def test_events_are_told_in_order_from_where_one_left_off() -> None:
    clock = ManualClock()
    events = Events(clock)
    first = events.record("reload", "one", {"generation": 2})
    clock.advance(5.0)
    events.record("reload", "two")
    assert [event.message for event in events.since()] == ["one", "two"]
    assert [event.message for event in events.since(first.id)] == ["two"]
    assert first.as_json() == {
        "id": 1, "at": clock.wall() - 5.0, "type": "reload", "message": "one",
        "data": {"generation": 2},
    }  # fmt: skip


def test_the_oldest_are_forgotten() -> None:
    events = Events(ManualClock())
    fill(events, KEPT + 10)
    assert len(events.since()) == KEPT
    assert events.since()[0].message == "10"


class TestIds:
    """They go on over restarts."""

    def test_a_run_begins_above_all_ids_of_the_run_before(self) -> None:
        before = ids_after(0, wall=1_700_000_000.5)
        assert before == 1_700_000_000 * RUN_IDS
        assert ids_after(before, wall=1_700_000_003.0) >= before + RUN_IDS

    def test_a_clock_that_was_set_back_changes_nothing(self) -> None:
        before = ids_after(0, wall=1_700_000_000.0)
        assert ids_after(before, wall=1_600_000_000.0) == before + RUN_IDS

    def test_every_program_can_count_so_far(self) -> None:
        assert ids_after(0, wall=4_000_000_000.0) < 2**53

    @pytest.mark.parametrize("id", [5, START - 1, START + 4, 9 * RUN_IDS])
    def test_an_id_of_another_run_is_told_all_and_that_something_may_be_missing(
        self, events: Events, id: int
    ) -> None:
        fill(events, 3)
        with events.subscribe(id) as follower:
            assert told(follower.take()) == [None, "0", "1", "2"]
            assert follower.take() == []

    def test_the_last_id_of_this_run_misses_nothing(self, events: Events) -> None:
        fill(events, 3)
        with events.subscribe(START + 3) as follower:
            assert follower.take() == []
            events.record("load", "3")
            assert told(follower.take()) == ["3"]


class TestFollowers:
    def test_without_an_id_they_are_told_what_comes(self, events: Events) -> None:
        fill(events, 3)
        with events.subscribe() as follower:
            assert follower.take() == []
            events.record("load", "new")
            assert told(follower.take()) == ["new"]

    def test_the_slow_are_told_how_many_they_missed_and_go_on_from_there(
        self, events: Events
    ) -> None:
        with events.subscribe(0) as follower:
            fill(events, KEPT + 25)
            lost, *rest = follower.take()
            assert isinstance(lost, Lost)
            assert (lost.count, len(rest)) == (25, KEPT)
            assert lost.id + 1 == rest[0].id
        with events.subscribe(lost.id) as again:
            assert told(again.take())[0] == "25"

    def test_from_zero_on_nothing_counts_as_missed(self, events: Events) -> None:
        fill(events, KEPT + 25)
        with events.subscribe(0) as follower:
            assert told(follower.take())[0] == "25"

    def test_they_may_want_some_types_only(self, events: Events) -> None:
        with events.subscribe(0, frozenset({"breaker"})) as follower:
            fill(events, 3)
            events.record("breaker", "open")
            fill(events, 3)
            assert told(follower.take()) == ["open"]
            fill(events, KEPT + 1)
            assert told(follower.take()) == [1]

    async def test_they_are_woken(self, events: Events) -> None:
        with events.subscribe() as follower:
            assert not await follower.wait(0.01)
            asyncio.get_running_loop().call_soon(events.record, "load", "x")
            assert await follower.wait(10)
            assert told(follower.take()) == ["x"]

    async def test_they_end_with_the_daemon_and_miss_nothing(self, events: Events) -> None:
        found: list[Record] = []

        async def follow() -> None:
            with events.subscribe(0) as follower:
                async for record in follower.records():
                    found.append(record)  # noqa: PERF401 - as they come

        following = asyncio.create_task(follow())
        await asyncio.sleep(0)
        events.record("load", "last")
        events.close()
        async with asyncio.timeout(10):
            await following
        assert told(found) == ["last"]

    def test_who_has_left_is_forgotten(self, events: Events) -> None:
        for _ in range(3):
            with events.subscribe():
                pass
        assert not events._followers


class TestWhatIsCarried:
    def test_strings_are_short_and_on_one_line(self, events: Events) -> None:
        event = events.record(
            "reject", "a\nlevel=error forged" + "x" * 9000, {"model": "m\r\x1b[2J\u2028" * 400}
        )
        for text in (event.message, event.data["model"]):
            assert len(text) <= 500
            assert text.isprintable()
        assert event.message.startswith("a\\nlevel=error forged")

    def test_a_workers_stderr_keeps_its_lines_and_its_end(self, events: Events) -> None:
        event = events.record("worker_down", "x", {"stderr": "early\n" * 9000 + "\x1b[31mthe end"})
        assert len(event.data["stderr"]) < 4100
        assert event.data["stderr"].endswith("early\n\\x1b[31mthe end")

    def test_whatever_is_carried_is_json(self, events: Events) -> None:
        deep: list[object] = []
        deep.append(deep)
        event = events.record(
            "load", "x",
            {"nan": float("nan"), "path": Path("/a"), "deep": deep, "many": list(range(9999)),
             "odd": "\ud800", 3: b"raw"},  # type: ignore[dict-item]
        )  # fmt: skip
        text = json.dumps(event.as_json(), allow_nan=False).encode()
        assert len(text) < 4000

    def test_what_is_private_is_for_the_owner_alone(self, events: Events) -> None:
        data = {"model": "m", "client": "10.0.0.9", "stderr": "/home/me", "by": "uid 5"}
        event = events.record("reject", "x", data)
        assert event.in_public()["data"] == {"model": "m"}
        assert event.as_json()["data"] == data

    @pytest.mark.parametrize("name", ["Acme", "acme-2", 'of "two" words', "a]b.c", "müller", "a:b"])
    def test_only_the_owner_is_told_the_names_of_tenants(self, events: Events, name: str) -> None:
        key = dotted(("clients", "tenants", name, "requests"))
        told = {
            "policy": key,
            "numbers": {"rule": f"tenant:{name}", "limit": 5},
            "rules": [f"tenant:{name}:tokens", f"tenant:{name}:daily_tokens"],
            "changes": [{"key": key, "new": "5"}, {"key": "clients.priorities.high.weight"}],
        }
        event = events.record("reject", f"{key} is now 5", told)
        assert event.in_public()["message"] == "clients.tenants.<name>.requests is now 5"
        assert event.in_public()["data"] == {
            "policy": "clients.tenants.<name>.requests",
            "numbers": {"rule": "tenant:<name>", "limit": 5},
            "rules": ["tenant:<name>:tokens", "tenant:<name>:daily_tokens"],
            "changes": [
                {"key": "clients.tenants.<name>.requests", "new": "5"},
                {"key": "clients.priorities.high.weight"},
            ],
        }
        assert event.as_json()["data"] == told


class TestLog:
    """Each event is one line."""

    @pytest.mark.parametrize(
        ("type", "data", "level"),
        [
            ("load", {}, logging.INFO),
            ("worker_down", {"reason": "SIGSEGV"}, logging.WARNING),
            ("worker_down", {"reason": "stopped"}, logging.INFO),
            ("memory_emergency", {}, logging.ERROR),
            ("of_another_version", {}, logging.INFO),
        ],
    )
    def test_its_level_is_its_types(
        self, events: Events, caplog: pytest.LogCaptureFixture, type: str, data: dict[str, str],
        level: int,
    ) -> None:  # fmt: skip
        with caplog.at_level(logging.DEBUG, "mlxd.events"):
            events.record(type, "words %s", {"model": "m", **data})
        assert [(r.levelno, r.getMessage()) for r in caplog.records] == [(level, "words %s")]
        line = caplog.records[0].__dict__
        assert (line["event"], line["model"]) == (type, "m")

    def test_it_may_be_told_another(self, events: Events, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO, "mlxd.events"):
            events.record("reload", "quiet", level=logging.DEBUG)
        assert caplog.records == []


def test_an_event_never_changes(events: Events) -> None:
    given = {"models": ["a"]}
    event = events.record("memory_action", "x", given)
    given["models"].append("b")
    assert event.data == {"models": ["a"]}
    assert isinstance(event, Event)
