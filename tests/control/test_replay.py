"""One request on several workers: when it goes on, who is accused, and what policy says of it."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from typing import Any

import pytest

from mlxd.control.gate import Turn
from mlxd.control.generation import Limits
from mlxd.control.order import Order
from mlxd.control.replay import Replays, seeded
from mlxd.control.suspects import Case
from mlxd.control.transcript import Push, Transcript
from mlxd.control.worker import Worker
from mlxd.core.clock import ManualClock
from mlxd.core.errors import (
    DeadlineExceeded,
    Draining,
    InsufficientMemory,
    InvalidRequest,
    ModelLoadFailed,
    RequestQuarantined,
    WorkerCrashed,
    WorkerStalled,
)
from mlxd.core.events import Burst, Finished, GenerationEvent, Started, TextDelta
from mlxd.core.models import ModelCard
from mlxd.core.request import GenerationRequest, Sampling
from mlxd.core.story import untold
from mlxd.ipc import messages as ipc
from mlxd.policy.load import Override, load
from tests.support.conversation import Conversation
from tests.support.daemon import write_policies
from tests.support.virtual_time import VirtualLoop

CARD = ModelCard("m", "/m", 1, "0" * 64, 0.0, "llama", 1, "f32", 512)
SIGKILL, SIGSEGV, SIGTERM, MEMORY = -9, -11, -15, 71


class Lease:
    """Gives the worker that lives, or the next one once a test has made it."""

    def __init__(self) -> None:
        self.talks: list[Conversation] = []
        self.error: Exception | None = None
        self.came = asyncio.Event()

    async def worker(self) -> Worker:
        while not self.talks or not self.talks[-1].worker.alive:
            if self.error is not None:
                raise self.error
            self.came.clear()
            await self.came.wait()
        return self.talks[-1].worker


class Request:
    """A client's, and what it has got."""

    def __init__(
        self,
        world: World,
        name: str,
        reads: int = 10**6,
        transcript: Transcript | None = None,
        push: Push | None = None,
        **more: Any,
    ) -> None:
        """`reads`: so many bursts, and no more before it `goes_on`. `transcript`: of another
        request, which this one goes on from.
        """
        self.world, self.name, self.reads = world, name, reads
        self.goes = asyncio.Event()
        self.case = Case("c", CARD, GenerationRequest(model="m", text=name, **more), Sampling())
        limits = Limits(300, 120, 30, 2, world.policies.line)
        self.story = untold()
        order = Order(
            self.case.request, Sampling(), 100, 50, 500, limits, world.loop.now,
            story=self.story, push=push,
        )  # fmt: skip
        lease: Any = world.lease
        self.bursts = world.replays.run(
            order, self.case, lease, world.policies, transcript=transcript
        )
        self.events: list[GenerationEvent] = []
        self.error: BaseException | None = None
        self.task = world.loop.do(lambda: asyncio.ensure_future(self.consume()))
        world.loop.settle()

    async def consume(self) -> None:
        try:
            async for burst in self.bursts:
                self.events += burst
                self.reads -= 1
                if not self.reads:
                    await self.goes.wait()
        except Exception as error:  # noqa: BLE001
            self.error = error
        finally:
            await self.bursts.aclose()

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, TextDelta))

    @property
    def asked(self) -> list[ipc.Generate]:
        """What the worker that lives was asked of it."""
        return [g for g in self.world.talk.of(ipc.Generate) if g.request.text == self.name]

    def is_running(self) -> bool:
        return bool(self.asked) and not self.task.done()

    def starts(self) -> None:
        """It is accepted, its prefill done."""
        id = self.asked[-1].id
        accepted = ipc.Accepted(id, 3, prompt=ipc.packed([7, 8, 9]))
        self.world.says(accepted, ipc.Output(1, [], started=[id], begun=[id]))

    def gets(self, *tokens: int) -> None:
        id = self.asked[-1].id
        for token in tokens:
            output = ipc.Output(1, [ipc.Text(id, f"{token} ")], taken=[ipc.Taken(id, [token])])
            self.world.says(output)

    def ends(self) -> None:
        count = sum(1 for _ in self.text.split())
        self.world.says(
            ipc.Output(1, [ipc.Ended(self.asked[-1].id, "stop", 3, count, 0, 0.1, 0.2)])
        )

    def is_cancelled(self) -> None:
        """The worker has heard that it is."""
        id = self.asked[-1].id
        assert id in [cancel.id for cancel in self.world.talk.of(ipc.Cancel)]
        self.world.says(ipc.Output(1, [ipc.Cancelled(id)]))

    def goes_on(self) -> None:
        self.world.loop.do(self.goes.set)
        self.world.loop.settle()

    def hangs_up(self) -> None:
        self.world.loop.do(self.task.cancel)
        self.world.loop.settle()


class World:
    def __init__(self, loop: VirtualLoop, tmp_path: Any, supervision: str = "") -> None:
        self.loop = loop
        files = {"supervision": supervision} if supervision else {}
        self.policies = load(write_policies(tmp_path / "policies", files))
        self.pressure = False
        self.replays = Replays(loop, lambda: self.pressure)
        self.outcomes: list[str] = []
        self.told: list[Any] = []
        self.replays.on_replay = self.outcomes.append
        self.replays.on_event = lambda type, words, data: self.told.append((type, data))
        self.lease = loop.do(Lease)
        self.spawn()

    @property
    def talk(self) -> Conversation:
        return self.lease.talks[-1]

    def spawn(self) -> None:
        pid = 100 + len(self.lease.talks)
        self.lease.talks.append(self.loop.do(lambda: Conversation(clock=self.loop, pid=pid)))
        self.loop.do(self.lease.came.set)
        self.loop.settle()

    def says(self, *messages: ipc.Up) -> None:
        self.loop.do(self.talk.says, *messages)
        self.loop.settle()

    def dies(self, status: int, *, next_one: bool = True) -> None:
        self.loop.run(self.talk.ends(status))
        self.loop.settle()
        if next_one:
            self.spawn()

    def gate_is_free(self) -> bool:
        gate = self.replays.gate_of(self.talk.worker)
        return not gate._inside and not gate._queue


def key_of(error: Any) -> str:
    """Of the policy that decided."""
    return str(error.policy.key)


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    made = VirtualLoop()
    asyncio.set_event_loop(made)
    yield made

    async def clear() -> None:
        """A task that is cancelled may begin another, which waits for the worker's word."""
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    made.run(clear())
    made.run(made.shutdown_asyncgens())
    made.close()
    asyncio.set_event_loop(None)


@pytest.fixture
def world(loop: VirtualLoop, tmp_path: Any) -> World:
    return World(loop, tmp_path)


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


def test_calls_that_could_not_be_read_are_counted_and_logged_once(world, caplog):
    told = []
    world.replays.on_malformed = lambda model, calls: told.append((model, calls))
    one = Request(world, "secret")
    one.starts()
    ended = ipc.Ended(one.asked[-1].id, "stop", 3, 1, 0, 0.1, 0.2, malformed_calls=2)
    world.says(ipc.Output(1, [ended]))
    assert told == [("m", 2)]
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == "2 tool calls of m could not be read, and are text"


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


# -- suspects


def two_that_died(world: World, status: int = SIGSEGV) -> tuple[Request, Request]:
    one, two = Request(world, "one"), Request(world, "two")
    for each in (one, two):
        each.starts()
        each.gets(1)
    world.dies(status)
    return one, two


def test_what_ran_when_a_worker_crashed_runs_alone(world):
    one, two = two_that_died(world)
    assert (one.is_running(), two.is_running()) == (True, False)
    later = Request(world, "later")
    assert not later.is_running(), "nobody runs beside a suspect"
    one.starts()
    one.ends()
    assert two.is_running()
    two.starts()
    two.ends()
    assert later.is_running()
    later.starts()
    later.ends()
    assert world.gate_is_free()


def test_those_who_run_make_way_for_a_suspect_and_go_on_beside_it(world):
    """Such as a client's that repeats a request that was suspected."""
    one = Request(world, "one")
    world.dies(SIGSEGV, next_one=False)
    one.hangs_up()
    world.spawn()
    other = Request(world, "other")
    other.starts()
    other.gets(1, 2)
    again = Request(world, "one")
    third = Request(world, "third")
    assert not again.is_running()
    other.is_cancelled()
    assert again.is_running()
    assert [len(other.asked), len(third.asked)] == [1, 0]
    again.starts()
    again.gets(1, 2, 3, 4)
    assert other.asked[1].resume == ipc.Resume(ipc.packed([7, 8, 9]), ipc.packed([1, 2]))
    assert third.is_running()
    other.starts()
    other.gets(3)
    third.starts()
    for each in (again, other, third):
        each.ends()
    assert other.text == "1 2 3 "
    assert [type(e) for e in other.events].count(Started) == 1
    assert world.gate_is_free()
    assert not world.outcomes[1:], "nobody's worker died but the first one's"


def test_one_that_waited_for_the_load_does_not_begin_before_those_that_were_interrupted(world):
    one = Request(world, "one")
    one.starts()
    one.gets(1)
    world.dies(SIGSEGV, next_one=False)
    new = Request(world, "new")
    world.loop.advance(2)
    world.spawn()
    assert (one.is_running(), new.is_running()) == (True, False)
    assert world.replays.waiting == 1
    one.starts()
    one.gets(2, 3, 4, 5)
    assert new.is_running()
    assert not world.replays.waiting


def test_nor_where_nobody_is_suspected(world):
    """An engine that does one after the other does what was interrupted first."""
    one = Request(world, "one")
    world.dies(SIGKILL, next_one=False)
    new = Request(world, "new")
    world.spawn()
    assert [g.request.text for g in world.talk.of(ipc.Generate)] == ["one", "new"]
    assert new.is_running()
    assert one.is_running()


def test_time_at_the_gate_is_not_the_generations(world):
    one, two = two_that_died(world)
    one.starts()
    for _ in range(28):
        world.loop.advance(10)
        world.says(ipc.Output(1, []))
    one.gets(2, 3, 4, 5)
    one.is_cancelled()
    assert two.is_running()
    two.starts()
    world.loop.advance(25)
    two.gets(2, 3, 4, 5)
    world.loop.advance(25)
    assert not two.error, "its own 300 s are not over"
    two.ends()
    assert isinstance(two.events[-1], Finished)


def test_nor_is_the_time_behind_others_in_the_next_worker(world):
    """Which does one after the other."""
    one, two = Request(world, "one"), Request(world, "two")
    two.starts()
    two.gets(1)
    world.dies(SIGKILL)
    one.starts()
    for token in range(28):
        world.loop.advance(10)
        one.gets(token)
    one.ends()
    two.starts()
    for token in range(28):
        world.loop.advance(10)
        two.gets(token)
    two.ends()
    assert isinstance(two.events[-1], Finished)


def test_many_suspects_each_have_their_turn_and_make_way_once(world):
    all = [Request(world, f"{number}") for number in range(6)]
    for each in all:
        each.starts()
        each.gets(1)
    world.dies(SIGSEGV)
    for number, each in enumerate(all):
        assert [one.is_running() for one in all[number:]] == [True] + [False] * (5 - number)
        each.starts()
        each.gets(2, 3, 4, 5)
        if each is not all[-1]:
            each.is_cancelled()
    assert [len(each.asked) for each in all] == [2] * 5 + [1]
    assert not world.replays.waiting


def test_who_has_made_way_twice_comes_further_before_it_does_again(world):
    """Though somebody repeats a suspected request for ever, and always hangs up."""
    other = Request(world, "other")
    for _ in range(2):
        again = repeated(world)
        other.is_cancelled()
        assert again.is_running()
        again.hangs_up()
        again.is_cancelled()
        assert not other.asked[-1].resume
    repeated(world)
    cancelled = len(world.talk.of(ipc.Cancel))
    new = Request(world, "new")
    other.starts()
    other.gets(1, 2, 3)
    assert len(world.talk.of(ipc.Cancel)) == cancelled
    assert not new.is_running()
    other.gets(4)
    assert len(world.talk.of(ipc.Cancel)) == cancelled + 1


def repeated(world: World) -> Request:
    """A client's request that is under suspicion."""
    again = Request(world, "again")
    accused = world.policies.supervision.quarantine
    if not world.replays.suspected(again.case):
        again.hangs_up()
        again.is_cancelled()
        world.replays._suspects.accuse(again.case, 1, accused, world.loop.now, alone=False)
        again = Request(world, "again")
    return again


def test_a_client_that_is_slow_to_take_its_answer_holds_up_no_suspect(world):
    slow = Request(world, "slow", reads=1)
    slow.starts()
    slow.gets(1, 2, 3)
    again = repeated(world)
    slow.is_cancelled()
    assert again.is_running()
    again.starts()
    again.ends()
    slow.goes_on()
    assert slow.text == "1 2 3 "
    assert slow.asked[-1].resume == ipc.Resume(ipc.packed([7, 8, 9]), ipc.packed([1, 2, 3]))
    slow.starts()
    slow.ends()
    assert isinstance(slow.events[-1], Finished)
    assert world.gate_is_free()


def test_one_that_was_let_in_and_has_not_begun_makes_way_too(world):
    gate = world.replays.gate_of(world.talk.worker)
    alone = world.loop.do(lambda: gate.enter(alone=True))
    one = Request(world, "one")

    async def let_in() -> Turn:
        alone.leave()
        return gate.enter(alone=True)

    turn = world.loop.run(let_in())
    world.loop.settle()
    assert turn.ready.done()
    assert not one.asked
    world.loop.do(turn.leave)
    world.loop.settle()
    assert one.is_running()


def test_one_that_has_come_further_than_before_is_cleared_and_makes_way(world):
    one, two = two_that_died(world)
    one.starts()
    one.gets(*range(2, 5))
    assert not two.is_running()
    one.gets(5)
    assert [m.id for m in world.talk.of(ipc.Cancel)] == [1], "it goes on beside others later"
    world.says(ipc.Output(1, [ipc.Cancelled(1)]))
    assert two.is_running()
    assert len(one.asked) == 1
    two.starts()
    two.gets(*range(2, 6))
    assert len(one.asked) == 2, "and nobody is under suspicion any more"
    assert one.asked[-1].resume == ipc.Resume(ipc.packed([7, 8, 9]), ipc.packed([1, *range(2, 6)]))
    one.starts()
    one.gets(6)
    one.ends()
    two.ends()
    assert one.text == " ".join(map(str, range(1, 7))) + " "
    assert world.outcomes == ["completed", "completed"]
    assert world.gate_is_free()


def test_others_come_in_beside_one_that_is_cleared(world):
    one = Request(world, "one")
    one.starts()
    one.gets(1)
    world.dies(SIGSEGV)
    later = Request(world, "later")
    one.starts()
    one.gets(*range(2, 5))
    assert not later.is_running()
    one.gets(5)
    assert later.is_running()
    assert not world.talk.of(ipc.Cancel)


@pytest.mark.parametrize(
    ("status", "pressure", "accused"),
    [
        (SIGKILL, False, False), (SIGKILL, True, True), (SIGTERM, True, False),
        (SIGSEGV, False, True), (70, False, True), (0, False, True),
    ],
)  # fmt: skip
def test_which_deaths_accuse(world, status, pressure, accused):
    world.pressure = pressure
    _, two = two_that_died(world, status)
    assert two.is_running() is not accused


def test_inputs_that_were_not_yet_read_are_not_accused(world):
    one, two, three = (Request(world, name, want="embedding") for name in ("one", "two", "three"))
    one.starts()
    world.dies(SIGSEGV)
    accused = [world.replays.suspected(each.case) for each in (one, two, three)]
    assert accused == [True, False, False]
    assert one.is_running()
    one.starts()
    one.ends()
    assert two.is_running()
    assert three.is_running()


def test_a_worker_that_was_to_go_accuses_nobody(world):
    """Such as one whose process held more than it may."""
    one, two = Request(world, "one"), Request(world, "two")
    world.loop.do(world.talk.worker.kill)
    world.loop.settle()
    world.spawn()
    assert one.asked
    assert two.asked


def test_a_second_death_while_alone_is_quarantine(world):
    one = Request(world, "one")
    world.dies(SIGSEGV)
    assert one.is_running()
    world.dies(SIGSEGV)
    assert isinstance(one.error, RequestQuarantined)
    assert "2 workers" in one.error.message
    assert "mlxd models reset m" in one.error.message
    assert key_of(one.error) == "supervision.quarantine.for"
    with pytest.raises(RequestQuarantined):
        world.replays.check(one.case, world.policies)
    (listed,) = world.replays.quarantined()
    assert (listed.model, listed.client) == ("m", "c")
    assert listed.until - listed.since == pytest.approx(3600)
    assert listed.since == pytest.approx(world.loop.wall(), abs=1)
    world.replays.check(Request(world, "other").case, world.policies)
    assert world.replays.reset(CARD) == 1
    world.replays.check(one.case, world.policies)


def test_one_that_died_in_company_is_not_refused(world):
    one, two = two_that_died(world)
    one.starts()
    world.dies(SIGSEGV)
    assert isinstance(one.error, RequestQuarantined), "the second time it was alone"
    assert two.is_running()
    two.starts()
    two.ends()
    assert isinstance(two.events[-1], Finished)


def test_where_one_death_is_enough_company_is_still_a_doubt(loop, tmp_path):
    world = World(loop, tmp_path, "quarantine: {kills: 1}\n")
    one, two = two_that_died(world)
    assert not one.error
    assert not two.error
    assert not world.replays.quarantined()


def test_a_suspect_that_waits_does_not_wait_for_ever(world):
    one, two = two_that_died(world)
    one.starts()
    for _ in range(13):
        world.loop.advance(20)
        world.says(ipc.Output(1, []))
    assert not two.error
    world.loop.advance(25)
    world.says(ipc.Output(1, []))
    world.loop.advance(15.5)
    one.is_cancelled()
    assert isinstance(one.error, DeadlineExceeded)
    assert two.is_running()


def test_a_suspect_that_hangs_up_in_the_queue_holds_nobody_up(world):
    one, two = two_that_died(world)
    later = Request(world, "later")
    two.hangs_up()
    one.hangs_up()
    world.says(ipc.Output(1, [ipc.Cancelled(1)]))
    assert later.is_running()
    later.starts()
    later.ends()
    assert world.gate_is_free()


def test_nothing_is_kept_of_a_worker_that_is_over(world):
    two_that_died(world)
    world.lease.talks.pop(0)
    gc.collect()
    assert len(world.replays._gates) == 1
    assert not world.replays._accused


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
