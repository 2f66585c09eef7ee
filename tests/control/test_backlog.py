import sys
from typing import Any

from mlxd.control.backlog import Backlog
from mlxd.core.clock import ManualClock
from mlxd.core.events import Finished, GenerationEvent, ReasoningDelta, TextDelta, TokenLogprob

SCORES = TokenLogprob("x", b"x", -0.1, tuple(("y", b"y", -1.0) for _ in range(20)))


def test_what_is_taken_in_time_is_what_came():
    backlog = Backlog(ManualClock())
    events: list[GenerationEvent] = [
        TextDelta("a"), TextDelta("b"), ReasoningDelta("c"), Finished("stop", 1, 3),
    ]  # fmt: skip
    for event in events:
        backlog.add(event)
    assert backlog.take() == events
    assert not backlog


def test_it_says_whether_there_is_text_and_nothing_else():
    backlog = Backlog(ManualClock())
    found = [backlog.plain]
    for event in (TextDelta("a"), ReasoningDelta("b"), Finished("stop", 1, 2), TextDelta("c")):
        backlog.add(event)
        found.append(backlog.plain)
    assert list(backlog.peek()) == list(backlog.take())
    backlog.add(TextDelta("d"))
    assert [*found, backlog.plain] == [False, True, True, False, False, True]
    backlog.add(TextDelta("x" * 4096))
    assert not backlog.plain, "nor much of it"


def test_the_text_for_a_consumer_that_never_comes_is_few_pieces_and_whole():
    backlog = Backlog(ManualClock())
    words = [f"word {number} " for number in range(8192)]
    for word in words:
        backlog.add(TextDelta(word))
    events: list[Any] = list(backlog.take())
    assert "".join(event.text for event in events) == "".join(words)
    assert sum(sys.getsizeof(event) + len(event.text) for event in events) < 256 * 1024


def test_pieces_of_two_kinds_and_their_scores_stay_apart():
    backlog = Backlog(ManualClock())
    for number in range(100):
        backlog.add(TextDelta(str(number), (SCORES,)))
    for number in range(100):
        backlog.add(ReasoningDelta(str(number)))
    events: list[Any] = list(backlog.take())
    assert sum(len(event.logprobs) for event in events) == 100
    kinds = [type(event) for event in events]
    assert kinds == sorted(kinds, key=[TextDelta, ReasoningDelta].index)


def test_scores_that_nobody_takes_are_too_much_after_a_moment():
    clock = ManualClock()
    backlog = Backlog(clock)
    for _ in range(200):
        backlog.add(TextDelta("x", (SCORES,)))
    found = [backlog.exceeds(256 << 10)]
    clock.advance(2.0)
    found.append(backlog.exceeds(256 << 10))
    backlog.take()
    found.append(backlog.exceeds(256 << 10))
    assert found == [False, True, False]
