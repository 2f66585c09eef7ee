"""One request on several workers: when it goes on, and what policy says of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mlxd.control.headway import Headway
from mlxd.control.replay import seeded
from mlxd.control.transcript import Origin, Transcript
from mlxd.core.clock import ManualClock
from mlxd.core.errors import (
    DeadlineExceeded,
    Draining,
    InsufficientMemory,
    InvalidRequest,
    ModelLoadFailed,
    ResumeExpired,
    WorkerCrashed,
    WorkerStalled,
)
from mlxd.core.events import Burst, Finished, Fold, Started, TextDelta
from mlxd.core.footprint import Footprint
from mlxd.core.request import Sampling
from mlxd.ipc import messages as ipc
from mlxd.policy.load import Override, load
from tests.support.conversation import Conversation
from tests.support.replays import CARD, MEMORY, SIGKILL, SIGTERM, Request, World, key_of


def test_another_request_goes_on_behind_a_client_that_has_left(world):
    transcript = Transcript()
    one = Request(world, "one", reads=2, transcript=transcript)
    one.starts()
    one.gets(1, 2, 3)
    one.hangs_up()
    one.gets(4)
    one.is_cancelled()
    assert (one.text, one.story.completion_tokens) == ("1 ", 3)
    world.loop.advance(1000)  # which count towards no limit
    two = Request(world, "one", transcript=transcript)
    assert two.text == "2 3 ", "what was there, and nobody had taken"
    assert two.asked[-1].resume == ipc.Resume(ipc.packed([7, 8, 9]), ipc.packed([1, 2, 3]))
    two.starts()
    two.gets(4)
    world.says(ipc.Output(1, [ipc.Ended(two.asked[-1].id, "stop", 3, 4, 2, 0.1, 0.2)]))
    assert [type(event) for event in two.events] == [*[TextDelta] * 3, Finished]
    assert two.text == "2 3 4 "
    assert two.error is None
    end: Any = two.events[-1]
    assert (end.completion_tokens, end.cached_tokens) == (4, 0), "as of an answer that nobody cut"
    assert (two.story.completion_tokens, two.story.prompt_tokens) == (1, 0)


def test_what_follows_the_first_of_an_answer_is_pushed_on_whichever_worker(world):
    """The first of it, which ends the prompt's part of the story, and the end come as bursts."""
    pushed: list[str] = []

    def push(burst: Burst) -> bool:
        pushed.extend(event.text for event in burst if isinstance(event, TextDelta))
        return True

    one = Request(world, "one", push=push)
    one.starts()
    one.gets(1, 2, 3)
    assert (one.text, pushed) == ("1 ", ["2 ", "3 "])
    assert one.story.first_token is not None
    world.dies(SIGKILL)
    assert one.asked[-1].resume == ipc.Resume(ipc.packed([7, 8, 9]), ipc.packed([1, 2, 3]))
    one.starts()
    one.gets(4)
    world.says(ipc.Output(1, [ipc.Ended(one.asked[-1].id, "stop", 3, 4, 0, 0.1, 0.2)]))
    assert (one.text, pushed) == ("1 ", ["2 ", "3 ", "4 "])
    assert isinstance(one.events[-1], Finished)
    assert (one.error, one.story.completion_tokens) == (None, 4)


def test_what_one_step_has_made_is_pushed_together_once_its_tokens_are_known(world):
    transcript = Transcript()
    pushed: list[tuple[int, int]] = []

    def push(burst: Burst) -> bool:
        pushed.append((len(burst), len(transcript.tokens)))
        return True

    one = Request(world, "one", transcript=transcript, push=push)
    one.starts()
    one.gets(1)
    id = one.asked[-1].id
    texts: list[ipc.Piece] = [ipc.Text(id, "2 "), ipc.Text(id, "3 ")]
    world.says(ipc.Output(2, texts, taken=[ipc.Taken(id, [2, 3])]))
    assert pushed == [(2, 3)]
    steps = [
        ipc.Output(n, [ipc.Text(id, f"{n} ")], taken=[ipc.Taken(id, [n])]) for n in range(4, 9)
    ]
    world.loop.do(world.talk.worker.data_received, b"".join(map(ipc.encode, steps)))
    assert pushed == [(2, 3), (5, 8)], "and what one read has brought of many"


def test_nobody_pushes_to_a_client_that_has_left(world):
    transcript = Transcript()
    pushed: list[Burst] = []

    def push(burst: Burst) -> bool:
        pushed.append(burst)
        return True

    one = Request(world, "one", transcript=transcript, push=push)
    one.starts()
    one.gets(1, 2)
    one.hangs_up()
    one.is_cancelled()
    assert (len(pushed), transcript.push) == (1, None)
    two = Request(world, "one", transcript=transcript)
    two.starts()
    two.gets(3, 4)
    assert (len(pushed), two.text) == (1, "3 4 ")


def test_what_is_left_keeps_its_order_however_often_it_is_left(world):
    transcript = Transcript()
    one = Request(world, "one", reads=1, transcript=transcript)
    one.starts()
    one.hangs_up()
    one.is_cancelled()
    transcript.left = [[TextDelta("1 ")], [TextDelta("2 ")], [TextDelta("3 ")]]
    two = Request(world, "one", reads=2, transcript=transcript)
    assert two.text == "1 2 "
    transcript.give_back(two.events[-1:])
    two.hangs_up()
    three = Request(world, "one", reads=1, transcript=transcript)
    three.hangs_up()
    four = Request(world, "one", transcript=transcript)
    assert three.text + four.text == "2 3 "


def test_a_prompt_is_in_one_story_and_so_is_what_of_it_was_cached(world):
    """One that is cut before anybody took it is told to whoever goes on."""
    transcript = Transcript()
    one = Request(world, "one", reads=1, transcript=transcript)
    id = one.asked[-1].id
    world.says(ipc.Accepted(id, 3, prompt=ipc.packed([7, 8, 9]), cached_tokens=2))
    world.says(ipc.Output(1, [], started=[id], begun=[id], reused=[ipc.Reused(id, 2)]))
    one.hangs_up()
    one.is_cancelled()
    two = Request(world, "one", transcript=transcript)
    two.starts()
    world.says(ipc.Output(1, [ipc.Ended(two.asked[-1].id, "stop", 3, 1, 2, 0.1, 0.2)]))
    assert (one.story.prompt_tokens, one.story.cached_tokens) == (3, 2)
    assert (two.story.prompt_tokens, two.story.cached_tokens) == (0, 0)


def test_an_end_that_nobody_took_needs_no_worker_again(world):
    transcript = Transcript()
    one = Request(world, "one", reads=1, transcript=transcript)
    one.starts()
    one.gets(1)
    one.ends()
    one.hangs_up()
    two = Request(world, "one", transcript=transcript)
    assert [type(event) for event in two.events] == [TextDelta, Finished]
    assert two.task.done()
    assert len(two.asked) == 1


def test_a_request_goes_on_behind_what_the_client_has_got(world):
    one = Request(world, "one")
    one.starts()
    one.gets(1, 2)
    world.dies(SIGKILL)
    (asked,) = one.asked
    assert asked.resume == ipc.Resume(ipc.packed([7, 8, 9]), ipc.packed([1, 2]))
    one.starts()
    one.gets(3)
    one.ends()
    assert one.text == "1 2 3 "
    assert [type(e) for e in one.events].count(Started) == 1
    assert isinstance(one.events[-1], Finished)
    assert world.outcomes == ["completed"]
    assert world.told == [
        ("replay", {"model": "m", "attempt": 1, "tokens": 2, "reason": "SIGKILL"})
    ]
    assert world.gate_is_free()


def test_a_client_that_falls_far_behind_loses_nothing_and_holds_up_nobody(world):
    """As one does that stops reading for a while: it goes on once it has taken what there was."""
    slow = Request(world, "slow", reads=2)
    slow.starts()
    slow.gets(0)
    scores = [ipc.Logprob("x", b"x", -0.1, [("y", b"y", -1.0)] * 20)]
    id, came = slow.asked[-1].id, 1
    while not world.talk.of(ipc.Cancel):
        assert came < 1000
        world.loop.advance(0.02)
        text = ipc.Text(id, f"{came} ", scores)
        world.says(ipc.Output(1, [text], taken=[ipc.Taken(id, [came])]))
        came += 1
    slow.is_cancelled()
    assert world.gate_is_free()
    slow.goes_on()
    assert slow.text == "".join(f"{number} " for number in range(came))
    prompt, tokens = ipc.packed([7, 8, 9]), ipc.packed(range(came))
    assert slow.asked[-1].resume == ipc.Resume(prompt, tokens)
    slow.starts()
    slow.ends()
    assert isinstance(slow.events[-1], Finished)
    assert not world.outcomes, "it is no replay"
    assert [note.what for note in slow.story.notes] == ["started", "fell_behind", "finished"]
    assert slow.story.notes[1].facts == {"tokens": came}


@pytest.mark.parametrize(
    ("answers", "times_64_kib"),
    [(1, [4, 8, 16, 32, 64, 64]), (2, [4, 8, 16, 32, 32]), (16, [4, 4])],
)
def test_a_client_that_is_slow_again_and_again_is_the_more_seldom_waited_for(
    world, answers, times_64_kib
):
    """Each time its prompt may have to be read again. What is kept for all answers of a call has a
    bound all the same, and nothing of it is kept for one that has ended.
    """
    transcript = Transcript()
    slow = Request(world, "slow", reads=2, transcript=transcript)
    slow.story.requests = answers
    slow.starts()
    slow.gets(0)
    scores = [ipc.Logprob("x", b"x", -0.1, [("y", b"y", -1.0)] * 656)]
    kept = []
    for _ in times_64_kib:
        kept.append(_falls_behind(world, slow, scores))
        slow.is_cancelled()
        slow.goes_on()
        slow.starts()
        slow.goes.clear()
        slow.reads = 1
        slow.gets(0)
    assert kept == times_64_kib
    slow.goes_on()
    slow.ends()
    assert isinstance(slow.events[-1], Finished)
    assert len(transcript.tokens) == 1 + len(kept) + sum(kept)
    assert transcript.too_much is None
    notes = [note.what for note in slow.story.notes]
    assert notes.count("fell_behind") == (answers < 9)


def _falls_behind(world: World, slow: Request, scores: list[ipc.Logprob]) -> int:
    """How much comes for one that reads nothing, before its answer leaves the engine."""
    id, came = slow.asked[-1].id, 0
    while id not in [cancel.id for cancel in world.talk.of(ipc.Cancel)]:
        assert came < 100
        world.loop.advance(0.5)
        text = ipc.Text(id, "x", scores)
        world.says(ipc.Output(1, [text], taken=[ipc.Taken(id, [1])]))
        came += 1
    return came


def test_a_time_in_which_a_client_takes_nothing_is_none_of_its_answers(world):
    slow = Request(world, "slow", reads=2)
    slow.starts()
    slow.gets(0)
    _falls_behind(world, slow, [ipc.Logprob("x", b"x", -0.1, [("y", b"y", -1.0)] * 656)])
    slow.is_cancelled()
    world.loop.advance(290)
    slow.goes_on()
    slow.starts()
    for _ in range(10):
        world.loop.advance(20)
        slow.gets(1)
    slow.ends()
    assert slow.error is None
    assert isinstance(slow.events[-1], Finished)
    assert world.loop.now > 300, "timeouts.generation"


def _computes_by(world: World, key: str) -> None:
    """The worker that lives has loaded this."""
    world.says(ipc.Ready(True, 1, 512, 0.0, 1, False, False, Footprint(0, ()), key=key))


def _dies_and_another_computes_by(world: World, key: str) -> None:
    world.dies(SIGKILL, next_one=False)
    world.lease.talks.append(world.loop.do(lambda: Conversation(clock=world.loop, pid=200)))
    _computes_by(world, key)
    world.loop.do(world.lease.came.set)
    world.loop.settle()


@pytest.mark.parametrize(("first", "then"), [("a", "a"), ("", "a"), ("a", "")])
def test_it_goes_on_where_no_other_model_is_known_to_have_taken_its_place(world, first, then):
    _computes_by(world, first)
    one = Request(world, "one")
    one.starts()
    one.gets(1)
    _dies_and_another_computes_by(world, then)
    one.starts()
    one.gets(2)
    one.ends()
    assert (one.text, one.error) == ("1 2 ", None)


def test_it_does_not_go_on_with_another_model_in_the_same_folder(world):
    _computes_by(world, "a")
    one = Request(world, "one")
    one.starts()
    one.gets(1)
    _dies_and_another_computes_by(world, "b")
    assert not one.asked
    assert one.text == "1 "
    assert isinstance(one.error, WorkerCrashed)
    assert "has changed since this answer was begun" in str(one.error)
    assert world.outcomes == ["failed"]
    assert world.gate_is_free()


def test_it_begins_anew_with_another_model_while_its_client_has_seen_nothing(world):
    _computes_by(world, "a")
    one = Request(world, "one")
    one.starts()
    world.says(ipc.Output(1, [], taken=[ipc.Taken(one.asked[-1].id, [1])]))
    _dies_and_another_computes_by(world, "b")
    assert one.asked[-1].resume is None
    one.starts()
    one.gets(2)
    one.ends()
    assert (one.text, one.error) == ("2 ", None)
    assert [type(event) for event in one.events] == [Started, TextDelta, Finished]
    whats = [note.what for note in one.story.notes]
    assert whats == ["started", "replayed", "begun_anew", "finished"]
    assert (one.story.prompt_tokens, one.story.completion_tokens) == (3, 1)
    assert world.outcomes == ["completed"]


@pytest.mark.parametrize("before", [(), (1, 2)])
def test_so_does_a_whole_answer_whatever_there_was_of_it(world, before):
    _computes_by(world, "a")
    one = Request(world, "one", stream=False)
    one.starts()
    one.gets(*before)
    _dies_and_another_computes_by(world, "b")
    assert one.asked[-1].resume is None
    one.starts()
    one.gets(3)
    world.says(ipc.Output(1, [ipc.Ended(one.asked[-1].id, "stop", 3, 1, 0, 0.1, 0.2)]))
    fold = Fold()
    fold.add(one.events)
    assert (fold.whole().text, one.error) == ("3 ", None)
    assert (one.story.prompt_tokens, one.story.completion_tokens) == (3, 1)


def test_its_client_may_come_back_once_the_catalogue_knows_the_other_model(world):
    headway = Headway()
    headway.begin(CARD, [Sampling()], lambda: 7)
    _computes_by(world, "a")
    one = Request(world, "one", reads=2, transcript=headway.transcripts[0])
    one.starts()
    _dies_and_another_computes_by(world, "b")
    one.starts()
    one.gets(1)
    one.hangs_up()
    known = replace(CARD, digest="1" * 64)
    for _ in range(2):
        headway.begin(known, [Sampling()], lambda: 7)
    with pytest.raises(ResumeExpired):
        headway.begin(replace(CARD, digest="2" * 64), [Sampling()], lambda: 7)


def test_what_its_other_model_reads_of_the_prompt_is_what_counts(world):
    _computes_by(world, "a")
    one = Request(world, "one", stream=False)
    one.starts()
    one.gets(1, 2)
    _dies_and_another_computes_by(world, "b")
    id = one.asked[-1].id
    world.says(ipc.Accepted(id, 5, prompt=ipc.packed([7] * 5)))
    world.says(ipc.Output(1, [], started=[id], begun=[id]))
    one.gets(3)
    world.says(ipc.Output(1, [ipc.Ended(id, "stop", 5, 1, 0, 0.1, 0.2)]))
    assert (one.story.prompt_tokens, one.story.completion_tokens) == (5, 1)


@pytest.mark.parametrize(("came_back", "told"), [(False, WorkerCrashed), (True, ResumeExpired)])
def test_nor_are_the_inputs_of_one_call_read_by_two_models(world, came_back, told):
    origin = Origin()
    origin.parts = 2
    _computes_by(world, "a")
    one = Request(world, "one", want="embedding", transcript=Transcript(origin=origin))
    one.starts()
    one.ends()
    assert one.task.done()
    _dies_and_another_computes_by(world, "b")
    origin.came_back = came_back
    two = Request(world, "two", want="embedding", transcript=Transcript(origin=origin))
    assert not two.asked
    assert isinstance(two.error, told)
    assert "has changed since this answer was begun" in str(two.error)
    other = Request(world, "other", want="embedding")
    assert other.asked, "another call begins with what is there"


def test_one_that_made_way_meanwhile_is_not_told_of_a_return_that_is_not_its_own(world):
    _computes_by(world, "a")
    one = Request(world, "one")
    one.starts()
    one.gets(1)
    gate = world.replays.gate_of(world.talk.worker)
    alone = world.loop.do(lambda: gate.enter(alone=True))
    world.loop.settle()
    one.is_cancelled()
    _dies_and_another_computes_by(world, "b")
    assert not one.task.done(), "it stands behind the one who must be alone"
    world.loop.do(alone.leave)
    world.loop.settle()
    assert isinstance(one.error, WorkerCrashed)
    assert "has changed since this answer was begun" in str(one.error)


def test_nor_does_a_client_that_comes_back_to_it(world):
    origin = Origin()
    transcript = Transcript(origin=origin)
    _computes_by(world, "a")
    one = Request(world, "one", reads=1, transcript=transcript)
    one.starts()
    one.gets(1)
    one.hangs_up()
    one.is_cancelled()
    _computes_by(world, "b")
    origin.came_back = True
    two = Request(world, "one", transcript=transcript)
    assert isinstance(two.error, ResumeExpired)
    fresh = Request(world, "another")
    assert fresh.asked, "what begins now begins with what is there"


def test_its_story_tells_of_all_its_workers(world):
    one = Request(world, "one")
    one.starts()
    one.gets(1, 2)
    world.dies(SIGKILL)
    one.starts()
    one.gets(3)
    one.ends()
    assert [note.what for note in one.story.notes] == ["started", "replayed", "finished"]
    assert one.story.notes[1].facts == {"reason": "SIGKILL", "tokens": 2}
    assert (one.story.replays, one.story.prompt_tokens, one.story.completion_tokens) == (1, 3, 3)
    assert one.story.first_token is not None


def test_the_story_of_one_that_was_left_counts_what_there_was(world):
    one = Request(world, "one")
    one.starts()
    one.gets(1, 2)
    world.loop.do(one.task.cancel)
    world.loop.settle()
    one.is_cancelled()
    assert (one.story.completion_tokens, one.story.prompt_tokens) == (2, 3)
    assert [note.what for note in one.story.notes] == ["started"]


def test_one_that_is_not_replayed_says_by_which_policy(world):
    world.policies = load(None, [Override("supervision.replay.attempts", "1", "a test")])
    one, other = Request(world, "one"), Request(world, "other", stream=True)
    for deaths in range(2):
        for request in one, other:
            if request.is_running():
                request.starts()
        world.dies(SIGTERM, next_one=deaths == 0)
    assert isinstance(one.error, WorkerCrashed)
    assert key_of(one.error) == "supervision.replay.attempts"
    assert one.error.numbers == {"replays": 1}
    assert one.error is not other.error


@pytest.mark.parametrize(("tokens", "full"), [(496, False), (497, True)])
def test_the_end_tells_whether_the_context_is_full(world, tokens, full):
    """It has 500 tokens, of which the prompt takes 3."""
    one = Request(world, "one")
    one.starts()
    ended = ipc.Ended(one.asked[-1].id, "length", 3, tokens, 0, 0.1, 0.2)
    world.says(ipc.Output(1, [ended]))
    last = one.events[-1]
    assert isinstance(last, Finished)
    assert last.context_full is full


@pytest.mark.parametrize(
    ("calls", "words"),
    [
        (1, "1 tool call of m could not be read, and is text"),
        (2, "2 tool calls of m could not be read, and are text"),
    ],
)
def test_calls_that_could_not_be_read_are_counted_and_logged_once(world, caplog, calls, words):
    told = []
    world.replays.on_malformed = lambda model, calls: told.append((model, calls))
    one = Request(world, "secret")
    one.starts()
    ended = ipc.Ended(one.asked[-1].id, "stop", 3, 1, 0, 0.1, 0.2, malformed_calls=calls)
    world.says(ipc.Output(1, [ended]))
    assert told == [("m", calls)]
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == words


def test_an_end_that_is_told_once_more_is_not_counted_again(world, caplog):
    told = []
    world.replays.on_malformed = lambda model, calls: told.append((model, calls))
    transcript = Transcript()
    one = Request(world, "secret", transcript=transcript)
    one.starts()
    ended = ipc.Ended(one.asked[-1].id, "stop", 3, 1, 0, 0.1, 0.2, malformed_calls=2)
    world.says(ipc.Output(1, [ended]))
    transcript.give_back(one.events[-1:])
    two = Request(world, "secret", transcript=transcript)
    assert isinstance(two.events[-1], Finished)
    assert told == [("m", 2)]
    assert len(caplog.records) == 1


def test_one_that_no_worker_has_accepted_begins_at_the_beginning(world):
    one = Request(world, "one")
    world.dies(SIGKILL)
    assert one.asked[0].resume is None
    one.starts()
    one.ends()
    assert isinstance(one.events[0], Started)
    assert isinstance(one.events[-1], Finished)


def test_an_undisturbed_request_is_counted_nowhere(world):
    one = Request(world, "one")
    one.starts()
    one.ends()
    assert not world.outcomes
    assert not world.told


def test_the_error_after_the_last_replay_is_the_clients(loop, tmp_path):
    world = World(loop, tmp_path, "replay: {attempts: 2}\n")
    one = Request(world, "one")
    for _ in range(3):
        assert not one.error
        world.dies(SIGKILL)
    assert isinstance(one.error, WorkerCrashed)
    assert world.outcomes == ["failed"]


@pytest.mark.parametrize("stream", [True, False])
def test_before_the_first_token_means_that_the_client_has_seen_nothing(loop, tmp_path, stream):
    world = World(loop, tmp_path, "replay: {when: before_first_token}\n")
    one = Request(world, "one", stream=stream)
    one.starts()
    one.gets(1)
    world.dies(SIGKILL)
    assert one.is_running() is not stream
    assert world.outcomes == (["refused"] if stream else [])
    other = Request(world, "other", stream=stream)
    other.starts()
    world.dies(SIGKILL)
    assert other.is_running()


def test_off_is_off(loop, tmp_path):
    world = World(loop, tmp_path, "replay: {when: 'off'}\n")
    one = Request(world, "one")
    world.dies(SIGKILL)
    assert isinstance(one.error, WorkerCrashed)
    assert world.outcomes == ["refused"]


def test_a_refusal_is_no_death(world):
    one = Request(world, "one")
    world.says(ipc.Refused(1, "invalid_request", "no"))
    assert isinstance(one.error, InvalidRequest)
    two = Request(world, "two")
    world.says(ipc.Refused(2, "insufficient_memory", "no room"))
    assert isinstance(two.error, InsufficientMemory)
    assert not world.outcomes
    assert world.talk.worker.alive


def test_a_worker_without_memory_is_replaced_and_the_last_error_says_memory(world):
    one = Request(world, "one")
    world.dies(MEMORY)
    assert one.is_running()
    world.dies(MEMORY)
    assert isinstance(one.error, InsufficientMemory)
    assert world.replays.quarantined(), "it was alone both times"


def test_a_stalled_request_goes_on_on_the_same_worker_that_heard_the_cancel(world):
    one = Request(world, "one")
    one.starts()
    one.gets(1)
    world.loop.advance(15.5)
    world.says(ipc.Pong(1, 1, ipc.Memory(0, 0, 0)))
    world.loop.advance(15)
    world.says(ipc.Output(1, [ipc.Cancelled(1)]))
    assert len(world.lease.talks) == 1
    assert [g.resume is not None for g in one.asked] == [False, True]
    assert world.told[0][1]["reason"] == "stalled"
    one.starts()
    one.gets(2)
    one.ends()
    assert one.text == "1 2 "
    assert world.outcomes == ["completed"]


def test_one_that_stalled_is_not_sent_to_the_same_worker_when_that_hears_no_cancel(world):
    one = Request(world, "one")
    one.starts()
    one.gets(1)
    world.loop.advance(15.5)
    world.says(ipc.Pong(1, 1, ipc.Memory(0, 0, 0)))
    world.loop.advance(17)
    assert len(one.asked) == 1
    world.spawn()
    assert one.asked[0].resume is not None
    assert world.replays.suspected(one.case), "the worker had to be killed"
    assert world.told[0][1]["reason"] == "stalled"
    one.starts()
    one.ends()
    assert world.outcomes == ["completed"]


def test_the_next_worker_is_waited_for_as_long_as_any_load(world):
    one = Request(world, "one")
    world.dies(SIGKILL, next_one=False)
    world.loop.advance(299)
    assert not one.error
    world.loop.advance(2)
    assert isinstance(one.error, ModelLoadFailed)
    assert key_of(one.error) == "timeouts.model_load"
    assert world.outcomes == ["failed"]


@pytest.mark.parametrize("tokens", [0, 1])
def test_who_waited_for_room_in_vain_is_told_of_that(world, tokens):
    one = Request(world, "one")
    if tokens:
        one.starts()
        one.gets(tokens)
    world.dies(SIGKILL, next_one=False)
    world.lease.waiting = InsufficientMemory("memory is at 95 %")
    world.loop.advance(301)
    assert isinstance(one.error, InsufficientMemory)


@pytest.mark.parametrize("limit", ["timeouts.model_load", "timeouts.generation"])
def test_who_waited_for_a_next_start_in_vain_is_told_of_both(world, limit):
    one = Request(world, "one")
    if limit == "timeouts.generation":
        one.starts()
        one.gets(1)
        world.loop.advance(1)
    world.dies(SIGKILL, next_one=False)
    world.lease.waiting = WorkerCrashed("it is started again in 8 s")
    world.loop.advance(301)
    assert isinstance(one.error, WorkerCrashed)
    assert key_of(one.error) == limit
    assert one.error.numbers["limit_seconds"] == 300
    assert world.lease.waiting.policy is None, "others are late by limits of their own"


def test_a_load_that_failed_is_told_whatever_it_had_waited_for(world):
    one = Request(world, "one")
    world.dies(SIGKILL, next_one=False)
    world.lease.waiting = InsufficientMemory("memory is at 95 %")
    world.lease.error = ModelLoadFailed("its files have gone")
    world.loop.do(world.lease.came.set)
    world.loop.settle()
    assert one.error is world.lease.error


def test_a_time_in_which_the_daemon_stood_still_does_not_count(world):
    """The loop's clock goes on then, and the daemon's does not."""
    world.replays._clock = clock = ManualClock()
    one = Request(world, "one")
    world.dies(SIGKILL, next_one=False)
    world.loop.advance(400)
    assert not one.error
    clock.advance(400)
    world.loop.advance(301)
    assert isinstance(one.error, ModelLoadFailed)


def test_no_longer_than_the_generation_has_left(world):
    one = Request(world, "one")
    one.starts()
    for token in range(20):
        world.loop.advance(10)
        one.gets(token)
    world.dies(SIGKILL, next_one=False)
    world.loop.advance(99)
    assert not one.error
    world.loop.advance(2)
    assert isinstance(one.error, DeadlineExceeded)
    assert key_of(one.error) == "timeouts.generation"


def test_who_waits_for_a_worker_is_told_that_the_daemon_stops(world):
    one = Request(world, "one")
    world.dies(SIGKILL, next_one=False)
    world.loop.do(world.replays.fail_all, Draining("stopping"))
    world.loop.settle()
    assert isinstance(one.error, Draining)


def test_nor_does_anybody_begin_to_wait_then(world):
    one = Request(world, "one")
    world.loop.do(world.replays.fail_all, Draining("stopping"))
    world.dies(SIGKILL, next_one=False)
    assert isinstance(one.error, Draining)


def test_a_load_that_fails_says_so(world):
    one = Request(world, "one")
    world.lease.error = ModelLoadFailed("broken")
    world.dies(SIGKILL, next_one=False)
    assert one.error is world.lease.error


def test_a_client_that_leaves_meanwhile_leaves_nothing(world):
    one = Request(world, "one")
    world.dies(SIGKILL, next_one=False)
    one.hangs_up()
    assert one.task.cancelled()
    assert world.outcomes == ["abandoned"]
    assert not world.replays._waits


# -- seeds


def test_whoever_draws_tokens_has_a_seed():
    assert seeded(Sampling(temperature=0.8), lambda: 7).seed == 7
    assert seeded(Sampling(), lambda: 7).seed == 7
    assert seeded(Sampling(temperature=0.8, seed=3), lambda: 7).seed == 3
    assert seeded(Sampling(temperature=0.0), lambda: 7).seed is None


def test_a_stall_after_the_last_replay_is_a_stall(loop, tmp_path):
    world = World(loop, tmp_path, "replay: {when: 'off'}\n")
    one = Request(world, "one")
    one.starts()
    one.gets(1)
    world.loop.advance(33)
    assert isinstance(one.error, WorkerStalled)
