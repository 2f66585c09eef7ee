"""An answer whose connection was cut goes on where it was: byte by byte the one that nobody cut."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.conftest import Start
from tests.integration.talking import ENDLESS, Json, eventually, held, idle
from tests.support import model_maker
from tests.support.cut import Cut, alike, letters_of
from tests.support.daemon import Daemon
from tests.support.fleet import PACED

pytestmark = pytest.mark.mlx

TOKENS = 80
CHAT, COMPLETIONS, RESPONSES, MESSAGES = (
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages",
)  # fmt: skip
APIS = pytest.mark.parametrize(
    "path", [CHAT, pytest.param(COMPLETIONS, marks=pytest.mark.slow), RESPONSES, MESSAGES]
)


def question(path: str, prompt: str, *, tokens: int = TOKENS, **more: Any) -> Json:
    """A stream is asked for, greedy unless told otherwise."""
    asked: Json = {"model": ENDLESS, "stream": True, "temperature": 0}
    if path == RESPONSES:
        return asked | {"input": prompt, "max_output_tokens": tokens} | more
    asked |= {"max_tokens": tokens}
    if path == COMPLETIONS:
        return asked | {"prompt": prompt, "stream_options": {"include_usage": True}} | more
    return asked | {"messages": [{"role": "user", "content": prompt}]} | more


def undisturbed(daemon: Daemon, path: str, body: Json) -> bytes:
    cut = Cut(daemon, path, body)
    whole = cut.rest()
    assert cut.status == 200, whole
    return whole


def resumed(daemon: Daemon, path: str, body: Json, event: str, **more: Any) -> Cut:
    return Cut(daemon, path, body, {"Last-Event-ID": event}, **more)


def outcomes(daemon: Daemon) -> dict[str, float]:
    found = re.findall(
        r'^mlxd_resumes_total\{outcome="(\w+)"\} (\S+)$', daemon.http.get("/metrics").text, re.M
    )
    return {outcome: float(value) for outcome, value in found}


def kept(daemon: Daemon) -> int:
    (value,) = re.findall(r"^mlxd_resume_kept (\S+)$", daemon.http.get("/metrics").text, re.M)
    return int(float(value))


def _read_some(cut: Cut, whole: bytes, number: int) -> None:
    """What is read before a cut: the first event, some more, a good deal, and nearly all."""
    if number < 2:
        cut.read(whole.index(b"\n\n") + 3 + 1900 * number)
    else:
        cut.read_text(int(letters_of(whole) * (0.25, 0.9)[number - 2]))


@APIS
def test_cut_anywhere_a_stream_goes_on_exactly(served: Daemon, path: str) -> None:
    body = question(path, "cut me", seed=7) if path != MESSAGES else question(path, "cut me")
    if path == MESSAGES:  # which knows no seeds
        body |= {"temperature": 0}
    if path in (CHAT, COMPLETIONS):
        body |= {"temperature": 0.9}
    whole = undisturbed(served, path, body)
    before = outcomes(served)
    for number in range(4):
        cut = Cut(served, path, body)
        _read_some(cut, whole, number)
        cut.hang_up(reset=number % 2 == 0)
        assert cut.last_id
        again = resumed(served, path, body, cut.last_id)
        rest = again.rest()
        assert again.status == 200, rest
        assert alike(cut.events + rest) == alike(whole)
    after = outcomes(served)
    assert sum(after.values()) == sum(before.values()) + 4
    assert after["expired"] == before["expired"]
    idle(served)


@pytest.mark.slow
def test_cut_again_and_again_it_still_goes_on_exactly(served: Daemon) -> None:
    body = question(CHAT, "again and again", tokens=400)
    whole = undisturbed(served, CHAT, body)
    cut = Cut(served, CHAT, body)
    cut.read(900)
    cut.hang_up()
    have, event = cut.events, cut.last_id
    for size in (300, 2000, 333, 5000):
        cut = resumed(served, CHAT, body, event)
        cut.read(size)
        cut.hang_up()
        have, event = have + cut.events, cut.last_id or event
    have += resumed(served, CHAT, body, event).rest()
    assert alike(have) == alike(whole)
    idle(served)


def test_several_choices_go_on_exactly(served: Daemon) -> None:
    """Side by side they come in any order; each is the same, and nothing is told twice."""
    body = question(CHAT, "several", n=3, temperature=0.8, seed=5)

    def choices(stream: bytes) -> dict[int, str]:
        """The text of each, and why it ended."""
        found = {0: "", 1: "", 2: ""}
        for data in re.findall(rb"data: (\{.*)\n", stream):
            for choice in json.loads(data)["choices"]:
                found[choice["index"]] += choice["delta"].get("content") or ""
                found[choice["index"]] += choice["finish_reason"] or ""
        return found

    whole = choices(undisturbed(served, CHAT, body))
    for size in (2000, 20_000):
        cut = Cut(served, CHAT, body)
        cut.read(size)
        cut.hang_up()
        have = cut.events + resumed(served, CHAT, body, cut.last_id).rest()
        assert choices(have) == whole
        numbers = [int(number) for number in re.findall(rb"\nid: \w+-(\d+)\n\n", have)]
        assert numbers == list(range(1, len(numbers) + 1))
    idle(served)


def test_where_policy_has_it_so_only_who_asks_for_events_is_told_ids(start: Start) -> None:
    daemon = start({"server": "resume: {ids: asked}\n"})
    body = question(CHAT, "no ids", tokens=5)
    for accept in ("*/*", "application/json"):
        assert b"\nid: " not in Cut(daemon, CHAT, body, {"Accept": accept}).rest()
    assert b"\nid: " in Cut(daemon, CHAT, body, {"Accept": "text/event-stream, */*"}).rest()


def test_a_connection_that_looks_open_is_taken_over(served: Daemon) -> None:
    body = question(CHAT, "half open", tokens=200)
    whole = undisturbed(served, CHAT, body)
    first = Cut(served, CHAT, body)
    first.read(1500)
    second = resumed(served, CHAT, body, first.last_id)
    assert alike(first.events + second.rest()) == alike(whole)
    idle(served)
    first.hang_up()


def test_another_client_and_another_request_get_nothing(served: Daemon) -> None:
    body = question(MESSAGES, "private")
    cut = Cut(served, MESSAGES, body)
    cut.read(800)
    cut.hang_up()
    event = cut.last_id
    for again in (
        resumed(served, MESSAGES, body, event, source="127.0.0.2"),
        resumed(served, MESSAGES, question(MESSAGES, "other"), event),
        resumed(served, MESSAGES, body, event[:-1] + "999"),
        resumed(served, MESSAGES, body, "0"),
    ):
        told = again.rest()
        assert again.status == 404
        assert again.headers["X-Mlxd-Code"] == "resume_expired"
        assert b'"type":"not_found_error"' in told
    assert resumed(served, MESSAGES, body, event).rest()
    idle(served)


# -- the same again


def _last_was_kept(daemon: Daemon) -> bool:
    """By the story of the last request."""
    notes = daemon.admin.get("/admin/requests")["requests"][0]["notes"]
    return any(note["what"] == "kept" for note in notes)


def _tokens(daemon: Daemon) -> int:
    """All that were made so far."""
    return int(daemon.http.get("/ui/state").json()["lately"]["completion_tokens"])


def test_a_whole_answer_that_was_cut_goes_on_when_it_is_asked_for_again(served: Daemon) -> None:
    body = question(CHAT, "whole", tokens=300) | {"stream": False}
    whole = Cut(served, CHAT, body).rest()
    before = outcomes(served)
    for number in range(3):  # it may be over before it is cut
        made = _tokens(served)
        cut = Cut(served, CHAT, body | {"user": f"{number}"})
        eventually(lambda: _tokens(served) > made, "it has some tokens")  # noqa: B023
        cut.hang_up()
        idle(served)
        if _last_was_kept(served):
            break
    body |= {"user": f"{number}"}
    again = Cut(served, CHAT, body)
    pattern = re.compile(rb'"(id|created|cached_tokens)":[^,}]+')
    assert pattern.sub(b"", again.rest()) == pattern.sub(b"", whole)
    assert outcomes(served)["attached"] == before["attached"] + 1


def test_a_stream_that_was_cut_is_told_from_its_beginning_when_it_is_asked_for_again(
    served: Daemon,
) -> None:
    body = question(RESPONSES, "from the beginning", tokens=250)
    whole = undisturbed(served, RESPONSES, body)
    cut = Cut(served, RESPONSES, body)
    cut.read(3000)
    cut.hang_up()
    idle(served)
    told = Cut(served, RESPONSES, body).rest()
    assert b"\nid: " + cut.last_id.encode() not in told, "whoever has the old ids has none of these"
    told = _with_ids_of(cut, told)
    assert told.startswith(cut.events)
    assert alike(told) == alike(whole)


def test_who_regenerates_gets_another_answer_and_who_retries_the_same(served: Daemon) -> None:
    body = question(COMPLETIONS, "dice", tokens=200, temperature=1.0)

    def first() -> Cut:
        cut = Cut(served, COMPLETIONS, body)
        cut.read(2500)
        cut.hang_up()
        idle(served)
        return cut

    cut = first()
    retry = Cut(served, COMPLETIONS, body, {"X-Stainless-Retry-Count": "1"})
    assert _with_ids_of(cut, retry.rest()).startswith(cut.events)
    cut = first()
    assert not _with_ids_of(cut, Cut(served, COMPLETIONS, body).rest()).startswith(cut.events)


def _with_ids_of(cut: Cut, told: bytes) -> bytes:
    """The same events, by the ids that they had when they were told first."""
    call = cut.last_id.rpartition("-")[0].encode()
    return re.sub(rb"\nid: \w+-", b"\nid: " + call + b"-", told)


def test_two_behind_one_address_are_told_apart_by_what_they_send(served: Daemon) -> None:
    body = question(CHAT, "one address", tokens=200)
    mine, yours = {"Authorization": "Bearer of-me"}, {"Authorization": "Bearer of-you"}
    cut = Cut(served, CHAT, body, mine)
    cut.read(2500)
    cut.hang_up()
    idle(served)
    before = outcomes(served)
    assert Cut(served, CHAT, body, yours | {"Last-Event-ID": cut.last_id}).rest()
    assert Cut(served, CHAT, body, yours).rest()
    after = outcomes(served)
    assert (after["attached"], after["resumed"]) == (before["attached"], before["resumed"])
    assert Cut(served, CHAT, body, mine | {"Last-Event-ID": cut.last_id}).rest()
    assert outcomes(served)["resumed"] == before["resumed"] + 1


def test_the_same_at_the_same_time_is_answered_twice(served: Daemon) -> None:
    body = question(CHAT, "twins", tokens=100)
    cuts = [Cut(served, CHAT, body) for _ in range(2)]
    told = [cut.rest() for cut in cuts]
    assert alike(told[0]) == alike(told[1])
    assert told[0] != told[1]


# -- limits


def test_where_no_slot_is_free_it_is_refused_and_goes_on_later(
    start: Start, paced: dict[str, str]
) -> None:
    limits = (
        "concurrency: {max_in_flight: 1, max_waiting: 0}\n"
        "rate_limit: [{name: resumed, requests: 4, window: 600s}]\n"
    )
    daemon = start({"limits": limits, **paced})
    body = question(CHAT, "later", tokens=300) | {"model": PACED}  # it is cut well before its end
    whole = undisturbed(daemon, CHAT, body)
    cut = Cut(daemon, CHAT, body)
    cut.read(1500)
    cut.hang_up()
    idle(daemon)
    with held(daemon, PACED, prompt="other"):
        for _ in range(3):
            refused = resumed(daemon, CHAT, body, cut.last_id)
            assert b"server busy" in refused.rest()
            assert refused.status == 503
    idle(daemon)
    have, event = cut.events, cut.last_id
    for _ in range(3):  # it counts once towards the rate, however often it goes on
        cut = resumed(daemon, CHAT, body, event)
        cut.read(400)
        cut.hang_up()
        have, event = have + cut.events, cut.last_id
    have += resumed(daemon, CHAT, body, event).rest()
    assert alike(have) == alike(whole)
    idle(daemon)
    daemon.edit("server", "resume: {window: 0s}\n")
    daemon.reload()
    assert kept(daemon) == 0
    assert b"\nid: " not in Cut(daemon, CHAT, body | {"max_tokens": 3}).rest()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_thousand_cut_streams_leave_the_daemon_as_large_as_it_was(start: Start) -> None:
    daemon = start({"server": "resume: {window: 5s}\n"})

    def cut_some(count: int) -> None:
        for number in range(count):
            cut = Cut(daemon, CHAT, question(CHAT, f"cut {number}", tokens=2000))
            cut.read(600)
            cut.hang_up(reset=number % 2 == 0)
        idle(daemon)

    cut_some(400)
    process = psutil.Process(daemon.pid)
    before = process.memory_info().rss
    cut_some(1000)
    assert process.memory_info().rss - before < 4 * 2**20
    eventually(lambda: kept(daemon) == 0, "all is forgotten")


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before it is loaded", "while it is told"])
def test_one_whose_model_is_replaced_goes_on_with_what_was_loaded(
    start: Start, zoo: Path, tmp_path: Path, when: str
) -> None:
    """The catalogue sees that while the answer is under way: nothing changes for it by that."""
    folder = tmp_path / "zoo" / ENDLESS
    shutil.copytree(zoo / ENDLESS, folder)
    shape = model_maker.Shape(layers=1, spread=3.0, context=65536)
    other = model_maker.make_model(tmp_path / "other", shape, seed=4) / "model.safetensors"
    running = start(models=folder.parent)
    known = _digest(running)
    if when == "before it is loaded":
        other.replace(folder / other.name)
    body = question(CHAT, "cut me", tokens=1000)
    cut = Cut(running, CHAT, body)
    cut.read_text(20)
    cut.hang_up()
    idle(running)
    if when == "while it is told":
        other.replace(folder / other.name)
    eventually(lambda: _digest(running) != known, "the catalogue sees it")
    rest = resumed(running, CHAT, body, cut.last_id).rest()
    assert alike(cut.events + rest) == alike(undisturbed(running, CHAT, body))


def _digest(daemon: Daemon) -> str:
    """Of its model, as the catalogue knows it."""
    (model,) = (m for m in daemon.http.get("/api/tags").json()["models"] if ENDLESS in m["name"])
    return str(model["digest"])
