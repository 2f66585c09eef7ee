import asyncio
import logging
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from mlxd.control.preload import Preloader
from mlxd.core.errors import InsufficientMemory, ModelNotFound, Overloaded
from tests.control.test_residency import World as Memory
from tests.control.test_residency import card


class Shelf:
    """Stands beside the catalogue: cards by name, and a scan that can be made to hang."""

    def __init__(self, *names):
        self.cards = {name: card(name) for name in names}
        self.scanned = asyncio.Event()
        self.scanned.set()
        self.late = {}
        self.broken = False
        self.short = 0
        """How often it cannot be scanned."""

    async def refreshed(self, policies):
        await self.scanned.wait()
        if self.broken:
            raise RuntimeError("a defect")
        if self.short:
            self.short -= 1
            raise Overloaded("the daemon can open no more files", retry_after=0.01)
        return SimpleNamespace(cards=self.cards)

    def find(self, name, policies):
        return self.cards.get(name) if self.scanned.is_set() else None

    async def resolve(self, name, policies):
        self.cards |= self.late
        if name not in self.cards:
            raise ModelNotFound(name)
        return self.cards[name]


class World(Memory):
    def __init__(self, tmp_path):
        super().__init__(tmp_path)
        self.shelf = Shelf("a", "b", "c", "d")
        self.preloader = Preloader(self.shelf, self.residency)  # type: ignore[arg-type]

    async def list(self, *names, also="max_loaded: 3\n"):
        """`models.preload` has these names from now on."""
        self.change(f"preload: [{', '.join(names)}]\n{also}")
        self.preloader.apply(self.policies)
        await self.settle()

    async def settle(self):
        for _ in range(5):
            await super().settle()

    @property
    def started(self):
        return [line.removeprefix("start ") for line in self.processes.log if "start" in line]


@pytest.fixture
async def world(tmp_path):
    made = World(tmp_path)
    made.preloader.start(made.policies)
    yield made
    await made.preloader.close()
    await made.residency.close(0)


async def test_listed_models_are_loaded_in_order_one_after_the_other(world):
    world.processes.gate.clear()
    await world.list("b", "a", "c")
    assert world.started == ["b"]
    world.processes.gate.set()
    await world.settle()
    assert world.started == ["b", "a", "c"]
    assert world.preloader.warnings() == []


async def test_nothing_is_loaded_before_the_start_nor_after_the_close(tmp_path):
    world = World(tmp_path)
    await world.list("a")
    assert world.started == []
    world.preloader.start(world.policies)
    await world.settle()
    assert world.started == ["a"]
    world.processes.gate.clear()
    await world.list("a", "b", "c")
    await world.preloader.close()
    world.processes.gate.set()
    await world.list("a", "b", "c", "d")
    assert world.started == ["a", "b"]
    await world.residency.close(0)


async def test_what_cannot_be_loaded_is_skipped_with_one_warning(world, caplog):
    with caplog.at_level(logging.WARNING):
        await world.list("missing", "a", "b", "c", "d")
        await world.list("missing", "a", "b", "c", "d")
    assert world.loaded == ["a", "b", "c"]
    assert [record.args[0] for record in caplog.records] == ["missing", "d"]
    missing, full = world.preloader.warnings()
    assert missing == "models.preload: 'missing' is not loaded: model 'missing' not found"
    assert "models.max_loaded: 3 (policies/models.yaml:3)" in full


async def test_a_warning_ends_when_its_model_is_loaded_or_no_longer_listed(world):
    await world.list("missing", "a", "b", "c", "d")
    assert len(world.preloader.warnings()) == 2
    await world.use("d")
    (left,) = world.preloader.warnings()
    assert "missing" in left
    await world.list("a")
    assert world.preloader.warnings() == []


async def test_folders_that_cannot_be_looked_at_for_a_while_are_waited_for(world, caplog):
    world.shelf.short = 3
    await world.list("a")
    async with asyncio.timeout(5.0):
        while world.started != ["a"]:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)
    assert caplog.text.count("preloading waits: the daemon can open no more files") == 1
    assert "defect" not in caplog.text


async def test_what_was_skipped_for_want_of_room_is_tried_at_the_next_change(world):
    world.others = 990
    await world.list("a")
    assert world.started == []
    world.others = 0
    await world.settle()
    assert world.started == []
    await world.list("a", also="max_loaded: 2\n")
    assert world.loaded == ["a"]
    assert world.preloader.warnings() == []
    world.residency.unload(card("a"))
    await world.settle()
    assert world.preloader.warnings() == [], "it was loaded; a client had it unloaded"


async def test_a_name_that_is_found_only_when_it_is_loaded_is_kept_too(world):
    world.shelf.late = {"e": card("e")}
    await world.list("e", also="defaults: {ttl: 0s}\n")
    assert world.loaded == ["e"]
    assert world.started == ["e"]


async def test_what_failed_is_not_tried_again_while_its_files_are_the_same(world):
    world.processes.broken = True
    await world.list("a")
    await world.list("a", "b")
    assert world.started == ["a", "b"]
    assert len(world.preloader.warnings()) == 2
    world.processes.broken = False
    await world.list("b")
    await world.list("b", "a")
    assert world.loaded == ["a"], "a is listed anew; b is as broken as before"


async def test_what_failed_is_tried_again_once_it_is_to_be_loaded_another_way(world):
    world.processes.broken = True
    world.shelf.cards["a"] = replace(card("a"), kv_bits=8)
    await world.list("a", also="models: {a: {kv_bits: 8}}\n")
    assert world.residency.failed(world.shelf.cards.values()) == {"a": "broken"}
    world.processes.broken = False
    world.shelf.cards["a"] = card("a")
    assert world.residency.failed(world.shelf.cards.values()) == {}
    await world.list("a")
    assert world.loaded == ["a"]
    assert world.preloader.warnings() == []


async def test_an_added_name_disturbs_no_other_and_a_new_order_does_nothing(world):
    await world.list("a", "b")
    before = dict(world.processes.up)
    async with world.lease("a"):
        await world.list("c", "b", "a")
    await world.list("a", "c", "b")
    assert world.started == ["a", "b", "c"]
    assert before.items() <= world.processes.up.items()


async def test_a_change_in_the_middle_of_a_load_starts_none_twice(world):
    world.processes.gate.clear()
    await world.list("a", "b")
    await world.list("a", "b", "c")
    await world.list("b", "a", "c")
    world.processes.gate.set()
    await world.settle()
    assert world.started == ["a", "b", "c"]


async def test_a_name_removed_before_its_turn_is_not_loaded(world):
    world.processes.gate.clear()
    await world.list("a", "b", "c")
    await world.list("a", "c")
    world.processes.gate.set()
    await world.settle()
    assert world.started == ["a", "c"]


async def test_what_a_client_had_unloaded_stays_out_until_it_is_listed_anew(world):
    await world.list("a", "b")
    world.residency.unload(card("a"))
    await world.settle()
    await world.list("a", "b", "c")
    assert world.loaded == ["b", "c"]
    assert world.preloader.warnings() == []
    await world.list("b", "c")
    await world.list("a", "b", "c")
    assert world.loaded == ["a", "b", "c"]


async def test_listed_models_do_not_idle_out_and_removed_ones_do(world):
    await world.list("a", "b", also="defaults: {ttl: 1m}\n")
    world.clock.advance(30)
    await world.list("a", also="defaults: {ttl: 1m}\n")
    assert world.loaded == ["a", "b"], "its time is not over"
    world.clock.advance(60)
    await world.list("a", also="defaults: {ttl: 50s}\n")
    assert world.loaded == ["a"]


async def test_a_removed_name_is_evictable_and_not_stopped_in_use(world):
    await world.list("a", also="defaults: {ttl: 0s}\n")
    async with world.lease("a"):
        await world.list(also="defaults: {ttl: 0s}\n")
        assert world.loaded == ["a"]
    await world.settle()
    assert world.loaded == []


async def test_a_scan_that_hangs_takes_no_protection_away(world):
    await world.list("a", also="defaults: {ttl: 1m}\n")
    world.clock.advance(600)
    world.shelf.scanned.clear()
    await world.list("a", "b", also="defaults: {ttl: 1m}\n")
    assert world.loaded == ["a"]
    world.shelf.scanned.set()
    await world.settle()
    assert world.loaded == ["a", "b"]


async def test_a_listed_name_that_moves_is_loaded_from_its_new_folder(world, tmp_path):
    await world.list("a", also="max_loaded: 1\n")
    world.shelf.cards["a"] = card("a", path="new")
    await world.list("a", also=f"max_loaded: 1\nmodels: {{a: {{path: {tmp_path}}}}}\n")
    assert world.loaded == ["new"]
    assert world.processes.log == ["start a", "stop a", "start a"]


async def test_a_successor_of_a_listed_model_is_protected_from_its_first_moment(world, tmp_path):
    also = "max_loaded: 4\ndefaults: {ttl: 0s}\n"
    await world.list("a", "b", also=also)
    world.shelf.scanned.clear()
    for name in ("a", "b"):
        world.shelf.cards[name] = card(name, path=f"new-{name}")
    await world.list("a", "b", also=f"{also}models: {{a: {{path: {tmp_path}}}}}\n")
    world.shelf.scanned.set()
    await world.settle()
    assert world.loaded == ["new-a", "new-b"]
    assert sorted(world.started) == ["a", "a", "b", "b"]


async def test_loaded_models_follow_their_names_only_when_folders_change(world, tmp_path):
    await world.use("a")
    del world.shelf.cards["a"]
    await world.list("b")
    assert world.loaded == ["a", "b"], "no policy has moved it"
    await world.list("b", also=f"max_loaded: 3\ndirs: [{tmp_path}]\n")
    assert world.loaded == ["b"]


async def test_loaded_models_follow_when_another_worker_of_them_is_wanted(world):
    await world.use("a", keep_alive=600)
    await world.list()
    world.shelf.cards["a"] = card("a", path="a with 8 bits")
    await world.list(also="models: {a: {kv_bits: 8}}\n")
    assert world.loaded == ["a with 8 bits"]


async def test_an_edit_taken_back_before_models_have_followed_it_leaves_them_as_they_were(world):
    await world.use("a", keep_alive=math.inf)
    await world.list()
    world.processes.gate.clear()
    world.shelf.cards["a"] = replace(card("a"), kv_bits=8)
    await world.list(also="models: {a: {kv_bits: 8}}\n")
    assert world.started == ["a", "a"]
    world.shelf.cards["a"] = card("a")
    await world.list()
    world.processes.gate.set()
    await world.settle()
    assert list(world.processes.up) == [card("a").spec], "and nothing that no name leads to"


ONE = "max_loaded: 1\n"


async def test_a_listed_model_comes_back_once_an_edit_that_broke_it_is_taken_back(world):
    await world.list("a", also=ONE)
    world.processes.broken = True
    world.shelf.cards["a"] = replace(card("a"), kv_bits=8)
    await world.list("a", also=f"{ONE}models: {{a: {{kv_bits: 8}}}}\n")
    assert world.loaded == []
    world.processes.broken = False
    world.shelf.cards["a"] = card("a")
    await world.list("a", also=ONE)
    assert list(world.processes.up) == [card("a").spec]
    assert world.preloader.warnings() == []


async def test_a_listed_model_that_left_for_an_edit_that_is_taken_back_is_told_of(world):
    await world.list("a", also=ONE)
    world.processes.gate.clear()
    world.shelf.cards["a"] = replace(card("a"), kv_bits=8)
    await world.list("a", also=f"{ONE}models: {{a: {{kv_bits: 8}}}}\n")
    assert world.loaded == []
    world.shelf.cards["a"] = card("a")
    await world.list("a", also=ONE)
    (warning,) = world.preloader.warnings()
    assert "models.preload: 'a' is not loaded" in warning, "what is being loaded has its room"
    world.processes.gate.set()
    await world.settle()
    await world.list("a", also=f"{ONE}defaults: {{ttl: 7s}}\n")
    assert list(world.processes.up) == [card("a").spec]


async def test_what_does_not_fit_is_skipped_with_its_numbers_and_the_others_loaded(world):
    world.shelf.cards["b"] = card("b", size=2000)
    await world.list("a", "b", "c")
    assert world.loaded == ["a", "c"]
    (warning,) = world.preloader.warnings()
    assert "model 'b' needs 1.95 TiB (2148632887296 bytes) of memory and 0.977 TiB" in warning
    assert "memory.reserve.system: 1B" in warning


async def test_while_loads_are_blocked_a_preload_is_skipped(world):
    world.residency.block_loads(InsufficientMemory("memory is at 95 %"))
    await world.list("a")
    assert world.preloader.warnings() == ["models.preload: 'a' is not loaded: memory is at 95 %"]


async def test_a_limit_that_shrinks_leaves_what_is_about_to_be_preloaded(world):
    world.change("max_loaded: 3\n")
    for name in ("a", "b", "c"):
        await world.use(name)
    await world.list("a", also="max_loaded: 1\n")
    assert world.loaded == ["a"]
    assert world.started == ["a", "b", "c"]


async def test_a_defect_is_logged_and_the_next_change_works(world, caplog):
    world.shelf.broken = True
    await world.list("a")
    assert "a defect of mlxd" in caplog.text
    world.shelf.broken = False
    await world.list("a", "b")
    assert world.loaded == ["a", "b"]


async def test_a_defect_with_one_name_is_told_and_the_others_are_loaded(world, monkeypatch, caplog):
    resolve = world.shelf.resolve

    async def odd(name, policies):
        if name == "b":
            raise KeyError("odd")
        return await resolve(name, policies)

    monkeypatch.setattr(world.shelf, "resolve", odd)
    await world.list("a", "b", "c")
    assert world.loaded == ["a", "c"]
    assert world.preloader.warnings() == [
        "models.preload: 'b' is not loaded: a defect; the log has it"
    ]
    assert "KeyError: 'odd'" in caplog.text
    monkeypatch.undo()
    await world.list("a", "b", "c", also="max_loaded: 4\n")
    assert world.loaded == ["a", "b", "c"]


async def test_a_defect_of_following_names_prevents_no_preload(world, monkeypatch, caplog):
    async def follow(cards, policies):
        raise KeyError("odd")

    await world.settle()
    monkeypatch.setattr(world.residency, "follow", follow)
    await world.list("a", also="models: {b: {kv_bits: 8}}\n")
    assert world.loaded == ["a"]
    assert "KeyError: 'odd'" in caplog.text


async def test_loaded_models_follow_another_way_of_loading_too(world, monkeypatch):
    await world.settle()
    followed = []

    async def follow(cards, policies):
        followed.append(policies)

    monkeypatch.setattr(world.residency, "follow", follow)
    for also in ("", "models: {a: {ttl: 1m}}\n", "models: {a: {kv_bits: 8}}\n"):
        await world.list("a", also=also)
    assert len(followed) == 1
