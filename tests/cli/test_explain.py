"""`mlxd explain`: a request's story in lines that a person understands."""

from __future__ import annotations

from typing import Any

import pytest

from mlxd.cli.story import end_of, lines_of, row_of
from mlxd.control.resident import Load
from mlxd.control.telling import Telling, leased
from mlxd.core.caller import Caller
from mlxd.core.clock import ManualClock
from mlxd.core.errors import DeadlineExceeded, InvalidRequest, ModelsBusy, Overloaded, PolicyLine
from mlxd.core.events import Finished, Started, TextDelta
from mlxd.core.story import Story
from mlxd.server.stories import as_json
from tests.support import command

SLOTS = PolicyLine("limits.concurrency.max_in_flight", "5", "policies/limits.yaml:3")


class Told:
    """A story that is told as a daemon would."""

    def __init__(self, key: str = "", tenant: str = "") -> None:
        self.clock = ManualClock()
        who = Caller("10.0.0.7", key, tenant)
        now = self.clock.monotonic()
        self.story = Story("r1", "/api/chat", who, 9, 0.0, self.clock.monotonic, now)
        self.story.want, self.story.model, self.story.stream = "answer", "qwen", True
        self.waits: str | None = None
        self.slow_prompt: str | None = None

    def after(self, seconds: float) -> Story:
        self.clock.advance(seconds)
        return self.story

    def ends(self, status: int) -> None:
        self.story.ended, self.story.status = self.story.now, status

    @property
    def lines(self) -> list[str]:
        return list(lines_of(self.json))

    @property
    def json(self) -> dict[str, Any]:
        return as_json(self.story) | {"waits": self.waits, "slow_prompt": self.slow_prompt}


@pytest.fixture
def told() -> Told:
    return Told()


def test_the_whole_way_of_one_that_was_served() -> None:
    told = Told(key="k-7", tenant="students")
    told.story.note("asked")
    told.story.note(
        "queued", position=3, expected_wait=4.2,
        policy=SLOTS.key, value=SLOTS.value, place=SLOTS.place,
    )  # fmt: skip
    told.after(4.0).admitted = 4.0
    told.story.note("admitted", waited=3.9, slots=5)
    leased(told.after(5.5), Load(0.5, 5.0, ModelsBusy("no room", policy=SLOTS), ("gemma",)))
    telling = Telling(told.story)
    told.clock.advance(0.5)
    telling.hear([Started(812, 512)])
    told.clock.advance(1.0)
    telling.hear([TextDelta("x")])
    telling.replayed("SIGKILL", 41)
    telling.fell_behind(99)
    telling.finished(Finished("stop", 812, 121, 512, 0.31, 3.0))
    told.ends(200)
    assert told.lines[1:] == [
        "  by      students with the key k-7 from 10.0.0.7",
        "  for     qwen: an answer, streamed; class medium; generation 9 of the policies",
        "     +0.000 s  what it asks is read",
        "     +0.000 s  it waits in the queue: place 3, about 4.2 s;"
        " limits.concurrency.max_in_flight: 5 (policies/limits.yaml:3)",
        "     +4.000 s  it has a slot, one of 5, after a wait of 3.9 s",
        "     +9.500 s  its model was loaded in 5.0 s, after a wait of 0.5 s: no room"
        " (limits.concurrency.max_in_flight: 5 (policies/limits.yaml:3)); gemma had to leave",
        "    +10.000 s  a worker took it: 812 tokens of prompt, 512 of them cached",
        "    +11.000 s  its worker was gone (SIGKILL); the next one goes on behind 41 tokens",
        "    +11.000 s  its client was far behind its answer, of 99 tokens:"
        " that goes on once they are taken",
        "    +11.000 s  finished (stop) with 121 tokens",
        "  ended   after 11.000 s: 200",
        "  times   its slot after 4.000 s, its model after 9.500 s, its worker after 10.000 s,"
        " its first token after 11.000 s, 40.0 tokens/s",
        "  tokens  812 of the prompt, 512 of them cached, read in 0.310 s; 121 of the answer",
    ]
    assert told.lines[0].startswith("request r1  ")
    assert told.lines[0].endswith("  /api/chat")


def test_a_refusal_says_what_decided_and_what_would_have_passed(told: Told) -> None:
    told.story.failed(
        Overloaded("Server overloaded", policy=SLOTS, numbers={"running": 5}, would_pass="later")
    )
    told.ends(503)
    assert "     +0.000 s  refused with overloaded: Server overloaded (running 5)" in told.lines
    assert told.lines[-3:] == [
        "  ended   after 0.000 s: 503 overloaded",
        "  decided limits.concurrency.max_in_flight: 5 (policies/limits.yaml:3)",
        "  passes  later",
    ]


def test_one_that_broke_off(told: Told) -> None:
    leased(told.story, None)
    told.story.failed(DeadlineExceeded("the generation took longer than 3 s"))
    told.ends(200)
    lines = told.lines
    assert "     +0.000 s  its model was in memory" in lines
    assert lines[4].endswith(
        "broken off with deadline_exceeded: the generation took longer than 3 s"
    )
    assert end_of(told.json) == "200 deadline_exceeded"


def test_what_may_quote_the_request_is_left_out(told: Told) -> None:
    told.story.failed(InvalidRequest("messages: 'secret' is no role"))
    assert "     +0.000 s  refused with invalid_request" in told.lines


def test_a_prompt_that_is_too_long_to_be_read_in_time_is_told(told: Told) -> None:
    assert not any(line.startswith("  slow") for line in told.lines)
    told.slow_prompt = "a prompt of 9 tokens takes about 5 s to read"
    assert "  slow    a prompt of 9 tokens takes about 5 s to read" in told.lines


def test_one_under_way_says_what_it_waits_for(told: Told) -> None:
    told.waits = "model 'qwen' needs 20 GiB"
    assert "  waits   model 'qwen' needs 20 GiB" in told.lines
    assert "  ended   it is under way" in told.lines


def test_one_whose_client_left_and_one_on_trial(told: Told) -> None:
    told.story.note("would_deny", rule="rate_limit:x")
    told.story.note("left")
    told.ends(499)
    assert "     +0.000 s  the rule rate_limit:x, on trial, would have refused it" in told.lines
    assert "     +0.000 s  the client left" in told.lines
    assert "  ended   after 0.000 s: the client left" in told.lines


def test_a_note_of_a_newer_daemon_is_told_by_its_keys(told: Told) -> None:
    told.story.note("teleported", where="mars", policy=SLOTS.key, value="5", place=SLOTS.place)
    assert told.lines[3] == (
        "     +0.000 s  teleported: where mars,"
        " limits.concurrency.max_in_flight: 5 (policies/limits.yaml:3)"
    )


def test_notes_that_are_not_kept_are_said_to_be(told: Told) -> None:
    told.story.untold = 3
    assert "  and 3 more of this that are not kept" in told.lines


def test_a_row_names_no_model_where_there_is_none_of_that_name(told: Told) -> None:
    told.story.model = ""
    told.story.note("asked")
    told.ends(404)
    _, id, who, model, took, end = row_of(told.json)
    assert (id, who, model) == ("r1", "10.0.0.7 without a key", "")
    assert (took, end) == ("0.00 s", "404")


def test_without_a_daemon_it_says_so(tmp_path: Any) -> None:
    done = command.mlxd("explain", "x", "--state", tmp_path)
    assert done.returncode == 1
    assert "no mlxd runs with the state folder" in done.stderr
