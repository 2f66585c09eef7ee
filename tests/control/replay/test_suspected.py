"""Requests that a worker died of, or may have: who is accused, runs alone, and is refused."""

from __future__ import annotations

import gc

import pytest

from mlxd.control.gate import Turn
from mlxd.core.errors import DeadlineExceeded, RequestQuarantined
from mlxd.core.events import Finished, Started
from mlxd.ipc import messages as ipc
from tests.support.replays import CARD, SIGKILL, SIGSEGV, SIGTERM, Request, World, key_of


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


@pytest.mark.parametrize("hops", range(4))
def test_one_that_must_make_way_before_it_knows_that_it_was_let_in_goes_on_behind(world, hops):
    """`hops`: turns of the event loop from its way in to the one who must be alone."""
    first = Request(world, "first")
    world.dies(SIGSEGV, next_one=False)
    first.hangs_up()
    world.spawn()
    again = Request(world, "first")
    other = Request(world, "other")
    assert (again.is_running(), other.is_running()) == (True, False)
    gate = world.replays.gate_of(world.talk.worker)
    alone: list[Turn] = []

    def comes(hops: int) -> None:
        if hops:
            world.loop.call_soon(comes, hops - 1)
        else:
            alone.append(gate.enter(alone=True))

    def lets_in() -> None:
        [turn] = gate._inside
        turn.leave()
        comes(hops)

    world.loop.do(lets_in)
    world.loop.settle()
    if other.asked:
        other.is_cancelled()
    assert alone[0].ready.done()
    world.loop.do(alone[0].leave)
    world.loop.settle()
    again.ends()
    assert other.is_running()
    other.starts()
    other.gets(1)
    other.ends()
    assert (other.text, other.error) == ("1 ", None)
    assert world.gate_is_free()


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
