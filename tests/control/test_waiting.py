"""Those who wait for a slot: futures, time, and what becomes of them when something ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from mlxd.control.admission import Admission
from mlxd.control.queue_view import OnWait, QueueView, Waiting
from mlxd.control.quotas import Quotas
from mlxd.control.rates import Rates
from mlxd.control.scheduler import Scheduler
from mlxd.control.ticket import Ticket
from mlxd.core.caller import Caller
from mlxd.core.clock import ManualClock, SystemClock
from mlxd.core.errors import (
    Draining,
    InsufficientMemory,
    InvalidRequest,
    MlxdError,
    QueueFull,
    QueueTimeout,
    RateLimited,
)
from mlxd.core.story import Story, untold
from mlxd.policy.policy_set import PolicySet
from tests.support.queue_model import Models, of_tenant, policies_of

ONE = policies_of(max_in_flight=1, max_waiting=300)


class Client:
    """Holds a slot until it is told to end."""

    def __init__(
        self, admission: Admission, name: str = "a", policies: PolicySet = ONE, model: str = "m"
    ) -> None:
        self.admission = admission
        self.applicant = of_tenant(name, policies, model)
        self.story: Story = untold()
        self.told: list[Waiting] = []
        self.ticket: Ticket | None = None
        self.end = asyncio.Event()
        self.task = asyncio.ensure_future(self._run())

    @property
    def runs(self) -> bool:
        return self.ticket is not None and not self.task.done()

    async def _run(self) -> None:
        async with self.admission.admit(
            self.applicant, story=self.story, on_wait=self.told.append
        ) as ticket:
            self.ticket = ticket
            await self.end.wait()


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@asynccontextmanager
async def clients(
    admission: Admission, count: int, policies: PolicySet = ONE
) -> AsyncIterator[list[Client]]:
    """So many, of whom the first has the slot."""
    admission.apply(policies)
    made = [Client(admission, policies=policies) for _ in range(count)]
    await turns()
    try:
        yield made
    finally:
        for client in made:
            client.task.cancel()
        await asyncio.gather(*(client.task for client in made), return_exceptions=True)
        assert admission.active == 0
        assert sum(admission.waiting.values()) == 0
        assert not admission._waiters
        assert not admission._tickets
        await asyncio.wait_for(admission.idle(), 1)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def admission(clock: ManualClock) -> Admission:
    return Admission(clock, ONE)


async def test_each_gets_the_slot_when_the_one_before_has_ended(admission: Admission) -> None:
    async with clients(admission, 4) as made:
        for number, client in enumerate(made):
            assert [one.runs for one in made] == [at == number for at in range(4)]
            client.end.set()
            await client.task
            await turns()
    assert (admission.totals.processed, admission.totals.queued) == (4, 3)
    assert admission.totals.by_class == {"medium": 4}


async def test_two_hundred_wait_and_all_are_served(admission: Admission) -> None:
    async with clients(admission, 200) as made:
        assert sum(admission.waiting.values()) == 199
        for client in made:
            client.end.set()
        await asyncio.gather(*(client.task for client in made))
    assert admission.totals.processed == 200


async def test_who_leaves_while_waiting_gives_its_place_up_at_once(admission: Admission) -> None:
    async with clients(admission, 3) as made:
        made[1].task.cancel()
        await turns()
        assert admission.waiting["medium"] == 1
        made[0].end.set()
        await turns()
        assert made[2].runs
    assert admission.totals.processed == 2


async def test_who_is_let_in_and_leaves_in_the_same_moment_loses_no_slot(
    admission: Admission,
) -> None:
    async with clients(admission, 3) as made:
        first = made[0].ticket
        assert first is not None
        admission.leave(first)
        made[1].task.cancel()  # its future is done, and it has not heard of it
        await turns()
        assert made[2].runs
        assert admission.active == 1


async def test_those_who_leave_together_are_given_no_slot_on_their_way(
    admission: Admission, clock: ManualClock
) -> None:
    async with clients(admission, 50) as made:
        clock.advance(20)
        for client in made[:49]:  # the one that runs leaves first, and its slot is free
            client.task.cancel()
        await turns()
        assert made[49].runs
        assert admission.totals.by_class == {"medium": 2}
        assert admission.totals.processed == 1
        assert admission.expected_wait("medium") == 20.0


async def test_a_slot_that_is_given_back_unused_says_nothing_of_how_long_they_are_held(
    admission: Admission, clock: ManualClock
) -> None:
    async with clients(admission, 3) as made:
        clock.advance(20)
        first = made[0].ticket
        assert first is not None
        admission.leave(first)
        made[1].task.cancel()  # it has got the slot, and has not heard of it
        await turns()
        assert made[2].runs
        assert admission.totals.processed == 1
        assert admission.expected_wait("medium") == 20.0


async def test_who_leaves_the_queue_has_nobody_looked_for(
    admission: Admission, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with clients(admission, 3) as made:
        with monkeypatch.context() as patched:
            patched.setattr(admission.scheduler, "turn", lambda now: pytest.fail("in vain"))
            made[1].task.cancel()
            await turns()
        assert admission.waiting["medium"] == 1


async def test_nobody_is_let_in_twice_however_often_somebody_looks(admission: Admission) -> None:
    async with clients(admission, 3) as made:
        made[0].end.set()
        await made[0].task
        for _ in range(5):
            admission.look()
            await turns()
        assert [one.runs for one in made] == [False, True, False]


async def test_a_wait_ends_with_503_when_its_time_is_over(
    admission: Admission, clock: ManualClock
) -> None:
    async with clients(admission, 2) as made:
        clock.advance(29.9)
        admission.look()
        await turns()
        assert not made[1].task.done()
        clock.advance(0.2)
        admission.look()
        with pytest.raises(QueueTimeout):
            await made[1].task
        assert made[0].runs
    totals = admission.totals
    assert (totals.expired, totals.rejected, totals.processed) == (1, 1, 1)
    assert admission.refused == {"queue": 1}


async def test_a_timer_ends_it_though_nobody_looks() -> None:
    policies = policies_of(max_in_flight=1, max_waiting=5, queue=0.05)
    admission = Admission(SystemClock(), policies)
    async with clients(admission, 3, policies) as made:
        for client in made[1:]:
            with pytest.raises(QueueTimeout):
                await asyncio.wait_for(client.task, 5)
        assert made[0].runs


async def test_whose_time_is_shorter_is_not_kept_by_who_came_before() -> None:
    long, short = (policies_of(max_in_flight=1, max_waiting=5, queue=time) for time in (60, 0.05))
    admission = Admission(SystemClock(), long)
    async with clients(admission, 2, long) as made:
        late = Client(admission, policies=short)
        with pytest.raises(QueueTimeout):
            await asyncio.wait_for(late.task, 5)
        assert not made[1].task.done()
    assert admission._expiry is None


async def test_a_limit_that_is_raised_lets_in_who_waits(admission: Admission) -> None:
    async with clients(admission, 4) as made:
        admission.apply(policies_of(max_in_flight=3, max_waiting=0))
        await turns()
        assert [one.runs for one in made] == [True, True, True, False]
        late = Client(admission)
        with pytest.raises(MlxdError, match="Max 3 concurrent"):
            await late.task


async def test_whoever_waits_is_told_that_the_daemon_stops(admission: Admission) -> None:
    async with clients(admission, 3) as made:
        admission.draining = True
        for client in made[1:]:
            with pytest.raises(Draining):
                await client.task
        assert made[0].runs
        late = Client(admission)
        with pytest.raises(Draining):
            await late.task
    assert admission.totals.rejected == 0


async def test_whoever_waits_is_told_why_admission_is_shut(admission: Admission) -> None:
    async with clients(admission, 3) as made:
        admission.shut(InsufficientMemory("memory is at 98 %"))
        errors = await asyncio.gather(*(one.task for one in made[1:]), return_exceptions=True)
        assert all(isinstance(error, InsufficientMemory) for error in errors)
        assert errors[0] is not errors[1]
        admission.shut(None)
        made.append(Client(admission))
        await turns()
        assert sum(admission.waiting.values()) == 1


async def test_nothing_is_idle_while_somebody_waits(admission: Admission) -> None:
    async with clients(admission, 2) as made:
        idle = asyncio.ensure_future(admission.idle())
        made[0].end.set()
        await turns()
        assert not idle.done()
        made[1].end.set()
        assert await asyncio.wait_for(idle, 1)


async def test_one_that_ends_the_wait_for_a_model_lets_in_who_waited_for_that() -> None:
    scene = Models({"cold"})
    policies = policies_of(max_in_flight=3, max_waiting=9)
    admission = Admission(ManualClock(), policies, scene)
    made = [Client(admission, "a", policies, "cold") for _ in range(3)]
    await turns()
    assert [one.runs for one in made] == [True, True, False]
    scene.cold.clear()
    assert made[0].ticket is not None
    made[0].ticket.loaded()
    await turns()
    assert made[2].runs
    for client in made:
        client.end.set()
    await asyncio.gather(*(client.task for client in made))


async def test_what_was_wrong_in_itself_is_not_counted_though_it_waited(clock: ManualClock) -> None:
    policies = policies_of(max_in_flight=1, max_waiting=5, rates=((2, 60.0),))
    admission = Admission(clock, policies)
    for _ in range(5):
        with pytest.raises(InvalidRequest):
            async with admission.admit(of_tenant("a", policies)):
                raise InvalidRequest("its prompt is too long")
    async with clients(admission, 2, policies):
        with pytest.raises(RateLimited):
            await Client(admission, policies=policies).task


class Charged(Quotas):
    def __init__(self) -> None:
        self.tokens: list[int] = []

    def charge(
        self, caller: Caller, policies: PolicySet, tokens: int, now: float, wall: float
    ) -> None:
        self.tokens.append(tokens)


async def test_a_tenant_is_charged_what_a_request_took(clock: ManualClock) -> None:
    quotas = Charged()
    admission = Admission(clock, ONE, quotas=quotas)
    for tokens in (None, 0, 7):
        async with admission.admit(of_tenant("a", ONE)) as ticket:
            ticket.tokens = tokens
    assert quotas.tokens == [7]


async def test_rates_go_by_the_clients_time_and_waits_by_the_daemons() -> None:
    """What passes while the daemon is stopped is not lost for a window of rates."""
    lived, real = ManualClock(), ManualClock()
    policies = policies_of(max_in_flight=2, max_waiting=5, rates=((2, 60.0),))
    admission = Admission(lived, policies, real=real)
    async with clients(admission, 2, policies):
        with pytest.raises(RateLimited):
            await Client(admission, policies=policies).task
        real.advance(61)
        waits = Client(admission, policies=policies)
        await turns()
        admission.look()
        assert not waits.task.done()
        waits.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits.task


# -- what is told


async def test_a_story_tells_of_the_wait_and_of_the_slot(
    admission: Admission, clock: ManualClock
) -> None:
    async with clients(admission, 2) as made:
        clock.advance(4)
        made[0].end.set()
        await turns()
        story = made[1].story
        assert [note.what for note in story.notes] == ["queued", "admitted"]
        assert story.notes[0].facts == {
            "position": 1,
            "expected_wait": 1.0,
            "policy": "limits.concurrency.max_in_flight",
            "value": "1",
            "place": "built-in default; set it in policies/limits.yaml",
        }
        assert story.notes[1].facts == {"waited": 4.0, "slots": 1}
        assert (story.priority, story.cost, story.rated) == ("medium", 1.0, True)
        assert story.admitted is not None
        assert [note.what for note in made[0].story.notes] == ["admitted"]
    assert admission.totals.wait(0.5) == 4.0
    assert admission.totals.wait(0.49) == 0.0


async def test_whoever_waits_is_told_its_place_when_it_begins_to_wait(
    admission: Admission,
) -> None:
    async with clients(admission, 4) as made:
        assert [one.told for one in made] == [[], *([Waiting(n, float(n))] for n in (1, 2, 3))]


def test_only_who_moved_is_told_again() -> None:
    scheduler = Scheduler(ONE, Models(), Rates(), Quotas())
    view, told = QueueView(scheduler), list[tuple[str, int]]()
    ask = of_tenant("a", ONE)
    holder, *places = (scheduler.ask(ask, 0.0, 0.0, lambda rule: None) for _ in range(4))

    def teller(name: str) -> OnWait:
        return lambda now: told.append((name, now.position))

    for name, place in zip("xyz", places, strict=True):
        view.begin(place, teller(name), view.of(place))
    view.tell()
    assert told == [("x", 1), ("y", 2), ("z", 3)]
    scheduler.leave(places[1], 0.0, 0.0)
    view.end(places[1])
    view.tell()
    assert told[3:] == [("z", 2)]
    scheduler.leave(holder, 0.0, 0.0)
    (started,) = scheduler.turn(0.0)
    view.end(started)
    view.tell()
    assert told[4:] == [("z", 1)]


async def test_a_refusal_is_counted_under_its_rule(admission: Admission) -> None:
    policies = policies_of(
        max_in_flight=1, max_waiting=1, rates=((3, 60.0),), tenants={"b": {"max_in_flight": 1}}
    )
    async with clients(admission, 2, policies):
        for error in (QueueFull, RateLimited):
            with pytest.raises(error):
                await Client(admission, policies=policies).task
        admission.apply(
            policies_of(max_in_flight=9, max_waiting=0, tenants={"b": {"max_in_flight": 1}})
        )
        async with admission.admit(of_tenant("b", admission.scheduler.policies)):
            with pytest.raises(MlxdError, match="busy"):
                admission.enter(of_tenant("b", admission.scheduler.policies))
    assert admission.refused == {"queue": 1, "rate_limit:r0": 1, "tenant:b": 1}
    assert admission.totals.rejected == 1
