"""Loads that fail: what is tried again, when, and what is not."""

import asyncio
from dataclasses import replace

import pytest

from mlxd.control.forecasting import ByWeight
from mlxd.control.process import Known
from mlxd.core.errors import InsufficientMemory, ModelLoadFailed, Overloaded
from mlxd.core.footprint import Footprint
from tests.control.test_residency import GIB, card
from tests.control.test_room import PATIENT, Timed

RETRY = "load: {max_parallel: 1, retry: {max: 2, backoff: 2s}}\n"


class Failing(Timed):
    """Fails the first loads, in ways of the test's own."""

    def __init__(self, tmp_path, *, failures, final=False, models=RETRY):
        super().__init__(tmp_path, PATIENT, models)
        self.starts: list[float] = []
        start = self.processes.start

        async def failing(*args):
            self.starts.append(self.loop.now)
            if len(self.starts) <= failures:
                error = ModelLoadFailed("its worker ended before the model was loaded")
                error.final = final
                raise error
            return await start(*args)

        self.processes.start = failing  # type: ignore[method-assign]

    @property
    def waited(self):
        return [at - self.starts[0] for at in self.starts]


@pytest.fixture
def failing(tmp_path):
    made = []

    def make(**options):
        made.append(Failing(tmp_path, **options))
        return made[-1]

    yield make
    for world in made:
        world.close()


def test_a_worker_that_failed_is_replaced_after_a_pause_that_doubles(failing):
    world = failing(failures=2)
    world.begin("a")
    world.loop.advance(6.5)
    assert world.loaded == ["a"]
    assert world.waited == [0, 2, 6]
    assert world.residency.failed([card("a")]) == {}


def test_the_line_that_allows_no_further_attempt_is_named(failing):
    world = failing(failures=3)
    world.begin("a")
    world.loop.advance(7)
    line = world.failure("a").policy
    assert line is not None
    assert (line.key, line.value) == ("models.load.retry.max", "2")


def test_a_worker_that_has_said_why_fails_by_no_line(failing):
    world = failing(failures=3, final=True)
    world.begin("a")
    assert world.failure("a").policy is None


def test_a_worker_is_told_what_is_known_of_its_model(failing, monkeypatch):
    world, told = failing(failures=0), []
    start = world.processes.start

    async def listening(*args):
        told.append(args[3])
        return await start(*args)

    world.processes.start = listening
    world.begin("a")
    size = card("a").size_bytes
    monkeypatch.setattr(ByWeight, "measured", lambda *_: Footprint(5, ()))
    world.begin("b")
    assert told == [Known(Footprint(size, ())), Known(Footprint(5, ()), measured=True)]


def test_files_that_cannot_be_looked_at_now_are_looked_at_again(failing):
    world, looks = failing(failures=0), []

    async def short(card, _):
        looks.append(world.loop.now)
        if len(looks) < 3:
            raise Overloaded("the daemon can open no more files", retry_after=1.0)
        return card

    world.residency._loads._check = short
    world.begin("a")
    world.loop.advance(6.5)
    assert world.loaded == ["a"]
    assert [at - looks[0] for at in looks] == [0, 2, 6]


def test_what_is_wrong_with_files_is_not_held_against_the_mended_model(failing):
    """The catalogue tells of it: the same files may be back before anybody asks again."""
    world = failing(failures=0)

    async def broken(*_):
        error = ModelLoadFailed("model 'a' cannot be used: it has no config.json")
        error.final = error.of_files = True
        raise error

    world.residency._loads._check = broken
    world.begin("a")
    assert "no config.json" in world.failure("a").message
    assert world.residency.failed([card("a")]) == {}


def test_an_edit_is_not_refused_for_files_that_are_away_when_it_is_first_asked_for(failing):
    world, edited = failing(failures=0), replace(card("a"), kv_bits=8)

    async def away(*_):
        error = ModelLoadFailed("model 'a' cannot be used: no such file or directory")
        error.final = error.of_files = True
        raise error

    async def use():
        async with world.residency.lease(edited, None, world.policies):
            pass

    world.once("a")
    world.residency._loads._check = away
    with pytest.raises(ModelLoadFailed, match="no such file"):
        world.loop.run(use())
    assert world.residency._loads._predecessors.settled(edited) == edited


def test_what_is_loaded_again_is_known_by_its_files_of_now(failing):
    world, digests = failing(failures=0), iter(("1" * 64, "2" * 64))

    async def anew(card, _):
        return replace(card, digest=next(digests))

    world.residency._loads._check = anew
    world.begin("a")
    world.loop.advance(1)
    (resident,) = world.residency.residents()
    assert resident.card.digest == "1" * 64


def test_a_load_that_fails_is_held_against_the_files_that_it_was_of(failing):
    world, now = failing(failures=1, final=True), replace(card("a"), digest="1" * 64)

    async def anew(*_):
        return now

    world.residency._loads._check = anew
    world.begin("a")
    world.failure("a")
    assert world.residency.failed([card("a")]) == {}
    assert list(world.residency.failed([now])) == ["a"]


def test_a_card_that_an_edit_changed_while_its_files_were_looked_at_is_of_its_files_too(failing):
    world, edited = failing(failures=0), replace(card("a"), aliases=("b",))

    async def meanwhile(looked_at, policies):
        world.residency.rename([edited], policies)
        return replace(looked_at, digest="1" * 64)

    world.residency._loads._check = meanwhile
    world.begin("a")
    world.loop.advance(1)
    (resident,) = world.residency.residents()
    assert (resident.card.digest, resident.card.aliases) == ("1" * 64, ("b",))


def test_attempts_come_to_an_end_and_the_last_reason_is_told(failing):
    world = failing(failures=9)
    world.begin("a")
    world.loop.advance(60)
    assert world.waited == [0, 2, 6]
    assert isinstance(world.failure("a"), ModelLoadFailed)
    assert world.residency.failed([card("a")]).keys() == {"a"}
    assert world.residency.residents() == []


def test_a_worker_that_has_said_why_is_not_asked_again(failing):
    world = failing(failures=1, final=True)
    world.begin("a")
    assert isinstance(world.failure("a"), ModelLoadFailed)
    assert world.waited == [0]


def test_what_does_not_fit_is_not_a_failure_to_be_tried_again(failing):
    world = failing(failures=0)
    world.begin("a", size=2000)
    assert isinstance(world.failure("a"), InsufficientMemory)
    assert world.starts == []


def test_each_attempt_is_judged_anew(failing):
    world = failing(failures=1)
    world.begin("a", size=500)
    world.others = 600
    world.loop.advance(3 + 6)
    refused = world.failure("a")
    assert isinstance(refused, InsufficientMemory)
    assert refused.available_bytes == 400 * GIB - 1
    assert len(world.starts) == 1


def test_a_failed_load_keeps_neither_its_turn_nor_its_room_while_it_pauses(failing):
    world = failing(failures=1)
    world.begin("a", size=800)
    world.begin("b", size=800)
    assert world.loaded == ["b"]
    world.end("b")
    world.loop.advance(3)
    assert world.loaded == ["a"]


def test_nobody_who_waits_any_more_means_no_further_attempt(failing):
    world = failing(failures=1)
    world.begin("a")
    world.tasks["a"].cancel()
    world.loop.advance(60)
    assert len(world.starts) == 1
    assert world.residency.residents() == []


def test_a_load_that_everyone_left_is_not_tried_again_when_it_fails(failing):
    world = failing(failures=9)
    failed, start = [], world.processes.start

    async def slow(*args):
        await asyncio.sleep(1)
        failed.append(world.loop.now)
        return await start(*args)

    world.processes.start = slow
    world.begin("a")
    world.tasks["a"].cancel()
    world.loop.advance(60)
    assert len(failed) == 1
    assert world.residency.residents() == []


def test_the_time_for_a_load_ends_its_attempts_too(failing):
    slow = "load: {max_parallel: 1, retry: {max: 9, backoff: 200s}}\n"
    world = failing(failures=9, models=slow)
    world.begin("a")
    world.loop.advance(301)
    refused = world.failure("a")
    assert refused.message == "its worker ended before the model was loaded"
    assert world.waited == [0, 200]
