"""What is told of a fit is what a load would do."""

import re

import pytest

from mlxd.control.forecasting import ByWeight
from mlxd.control.ledger import PROCESS_BYTES
from mlxd.control.residency import Residency
from mlxd.core.errors import InsufficientMemory, PolicyLine
from mlxd.core.footprint import Footprint, LayerGroup
from tests.control.test_residency import GIB, card
from tests.control.test_room import WAIT, Timed

REFUSE = "eviction: {protect_recent: 30s, min_residency: 0s}\nreserve: {when_full: refuse}\n"


class PerToken(ByWeight):
    """A GiB for each 256 tokens, and twice of what the footprint says."""

    def footprint(self, card):
        return Footprint(card.size_bytes, (LayerGroup(1, GIB // 256),))

    def load_bytes(self, card, policies):
        return card.size_bytes + GIB

    def correct(self, card, predicted):
        return predicted * 2

    def confidence(self, card):
        return "learned", 12, 3.5


class Reserving(ByWeight):
    """Keeps what policy says for a first generation, in GiB where that says nothing."""

    def load_bytes(self, card, policies):
        kept = policies.memory.reserve.per_request
        return card.size_bytes + (GIB if kept == "auto" else int(kept))


@pytest.fixture
def world(tmp_path):
    made = Timed(tmp_path, WAIT, models="")
    made.residency = Residency(made.processes, made.loop, made.read, PerToken())  # type: ignore[arg-type]
    yield made
    made.close()


def fit(world, name="new", size=100, context=None):
    return world.residency.fit(card(name, size), world.policies, context)


def test_a_model_that_fits_is_told_with_its_numbers_and_how_sure_they_are(world):
    told = fit(world)
    assert (told.verdict, told.evicts, told.wait_seconds, told.reason) == ("fits", (), None, "")
    assert told.policy is None
    assert told.needed_bytes == 102 * GIB + PROCESS_BYTES
    assert told.available_bytes == 1000 * GIB - 1
    assert (told.confidence, told.observations, told.error_percent) == ("learned", 12, 3.5)
    assert told.context == 512, "all that the model has"


def test_what_would_be_evicted_is_told_in_order_and_nothing_is_done(world):
    world.once("old", size=400)
    world.once("new-idle", size=400)
    world.loop.advance(31)
    told = fit(world, size=500)
    assert (told.verdict, told.evicts) == ("fits_after_eviction", ("old",))
    assert told.available_bytes == 599 * GIB - 1 + PROCESS_BYTES
    assert world.loaded == ["new-idle", "old"]
    world.once("new", size=500)
    assert world.loaded == ["new", "new-idle"], "as it was told"


def test_a_wait_is_told_with_its_time_or_without_one_that_nobody_knows(world):
    world.once("a", size=800)
    world.loop.advance(10)
    told = fit(world, size=500)
    assert (told.verdict, told.wait_seconds, told.evicts) == ("fits_after_wait", 20, ())
    assert "a would have to leave" in told.reason
    world.begin("a", size=800)
    told = fit(world, size=500)
    assert (told.verdict, told.wait_seconds) == ("fits_after_wait", None)
    assert "is in use" in told.reason


def test_what_never_fits_is_told_with_the_reason(world):
    told = fit(world, size=1200)
    assert (told.verdict, told.longest_context) == ("never", 0)
    assert "even with every other model unloaded" in told.reason
    assert told.policy is not None
    assert told.policy.key == "memory.reserve.system"
    assert told.available_bytes < told.needed_bytes


def test_a_context_is_judged_by_the_corrected_footprint(world):
    told = fit(world, size=100, context=512)
    assert told.needed_bytes == 2 * 102 * GIB + GIB + PROCESS_BYTES
    assert fit(world, size=450, context=512).verdict == "fits"
    assert fit(world, size=499, context=512).verdict == "never"


@pytest.mark.parametrize("loaded", [False, True])
def test_the_limit_of_a_worker_is_obeyed(world, loaded):
    world.memory = f"{WAIT}worker_limits: {{mlx_memory_limit: 205GiB}}\n"
    world.loop.do(world.change, "")
    if loaded:
        world.once("new", size=100)
    assert fit(world, context=512).verdict == ("loaded" if loaded else "fits")
    told = fit(world, size=103, context=512)
    assert (told.verdict, told.needed_bytes, told.available_bytes) == (
        "never", 210 * GIB, 205 * GIB,
    )  # fmt: skip
    assert told.reason == (
        f"model 'new' needs 210 GiB ({210 * GIB} bytes), and a worker may take 205 GiB"
        f" ({205 * GIB} bytes)"
    )


def test_the_longest_context_is_what_would_fit_with_everything_idle_gone(world):
    assert fit(world, size=100).longest_context == 512
    assert fit(world, size=498).longest_context == 256
    world.once("idle", size=300)
    assert fit(world, size=498).longest_context == 256
    world.begin("busy", size=300)
    assert fit(world, size=498).longest_context == 0


def test_a_loaded_model_is_told_by_what_more_it_needs(world):
    world.begin("a", size=100)
    told = fit(world, "a", size=100, context=512)
    assert (told.verdict, told.needed_bytes) == ("loaded", 205 * GIB)
    world.begin("b", size=850)
    told = fit(world, "a", size=100, context=512)
    assert (told.verdict, told.evicts) == ("fits_after_wait", ())


def test_a_block_is_told(world):
    line = PolicyLine("memory.watermarks.critical.enter", "95%", "memory.yaml:3")
    blocked = InsufficientMemory("memory is at 95 %", policy=line)
    world.loop.do(world.residency.block_loads, blocked)
    told = fit(world)
    assert told.policy == line
    assert (told.verdict, told.reason) == ("fits_after_wait", "memory is at 95 %")


def test_without_a_reading_everything_fits(world):
    world.residency._inventory.read_memory = lambda: None
    told = fit(world, size=5000)
    assert (told.verdict, told.longest_context) == ("fits", 512)


def test_who_leaves_for_a_reserve_is_told_that_it_is_that(tmp_path):
    def evicting(size, kept):
        memory = WAIT.replace("system: 1B", f"system: 1B, per_request: {kept}")
        made = Timed(tmp_path, memory, models="max_loaded: auto\n")
        made.residency = Residency(made.processes, made.loop, made.read, Reserving())  # type: ignore[arg-type]
        told = []
        made.residency.on_evicted = lambda name, held, cause: told.append((name, cause.policy))
        made.once("idle")
        made.loop.advance(60)
        made.begin("new", size=size)
        made.loop.advance(1)
        made.close()
        return [(name, line and line.key) for name, line in told]

    assert evicting(300, "1B") == []
    assert evicting(300, f"{450 * GIB}B") == [("idle", "memory.reserve.per_request")]
    assert evicting(950, "1B") == [("idle", "memory.reserve.system")]


def test_where_a_model_fits_without_its_reserve_that_is_named_and_what_would_do(tmp_path):
    def loaded(size, kept):
        memory = WAIT.replace("system: 1B", f"system: 1B, per_request: {kept}")
        made = Timed(tmp_path, memory, models="max_loaded: auto\n")
        made.residency = Residency(made.processes, made.loop, made.read, Reserving())  # type: ignore[arg-type]
        made.begin("a", size=size)
        found = made.failure("a") if made.tasks["a"].done() else None
        made.close()
        return found

    refused = loaded(900, "2TiB")
    assert isinstance(refused, InsufficientMemory)
    assert refused.policy is not None
    assert refused.policy.key == "memory.reserve.per_request"
    would_do = re.search(r"per_request of at most .* \((\d+) bytes\)", refused.would_pass)
    assert would_do is not None
    most = int(would_do[1])
    assert 90 * GIB < most < 100 * GIB
    assert loaded(900, f"{most}B") is None, "it is true"
    too_large = loaded(1100, "1B")
    assert isinstance(too_large, InsufficientMemory)
    assert too_large.policy is not None
    assert too_large.policy.key == "memory.reserve.system"
