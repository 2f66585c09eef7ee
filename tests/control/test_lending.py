"""What workers may keep of earlier prompts: lent while nobody needs it, taken back first."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mlxd.control.ledger import Account, free_bytes
from mlxd.control.lending import loans
from mlxd.control.memory import MemoryReading
from mlxd.ipc import messages as ipc
from mlxd.policy.schema import Memory
from tests.control.test_residency import AT_ONCE, GIB, card
from tests.control.test_room import PATIENT, Timed, ask, grown

SHARED = MemoryReading(total=1000 * GIB, available=600 * GIB)


def reserve(reading: MemoryReading | None) -> int:
    return reading.total // 20 if reading is not None else 0


def lent(
    accounts: dict[str, Account],
    memory: str = "auto",
    reading: MemoryReading | None = SHARED,
    *,
    others: int = 0,
    left: float = 1.0,
) -> dict[str, int]:
    policy = Memory.model_validate({"prefix_cache": {"memory": memory}})
    free = free_bytes(reading, reserve(reading), accounts.values(), 0)
    return loans(policy, reading, free, accounts, others=others, left=left)


class TestHowMuch:
    def test_a_quarter_of_what_is_free_below_the_warning_mark_is_shared(self) -> None:
        small = MemoryReading(100 * GIB, 60 * GIB)
        alone = lent({"a": Account(10 * GIB, 4 * GIB)}, reading=small)
        assert alone == {"a": pytest.approx((60 - 15 - 6) * GIB / 4, rel=1e-6)}
        both = lent({"a": Account(10 * GIB, 4 * GIB), "b": Account(0, 0)}, reading=small)
        assert both == dict.fromkeys("ab", alone["a"] // 2)
        beside = lent({"a": Account(10 * GIB, 4 * GIB)}, reading=small, others=8 * GIB)
        assert beside == {"a": pytest.approx((60 - 15 - 6 - 8) * GIB / 4, rel=1e-6)}

    def test_no_worker_is_lent_more_than_16_gib(self) -> None:
        assert lent({"a": Account(0, 0)}) == {"a": 16 * GIB}

    def test_of_a_small_model_little_is_worth_keeping(self) -> None:
        def worth(weights: int) -> int:
            return lent({"a": Account(0, 0, weights=weights)})["a"]

        assert worth(2**20) == 64 * 2**20
        assert worth(GIB) == 4 * GIB
        assert worth(40 * GIB) == 16 * GIB
        small = Account(0, 0, weights=2**20)
        assert lent({"a": small}, "2GiB") == {"a": 2 * GIB}, "policy may say otherwise"

    def test_what_is_kept_already_is_not_in_its_own_way(self) -> None:
        small = MemoryReading(100 * GIB, 60 * GIB)
        before = lent({"a": Account(10 * GIB, 4 * GIB)}, reading=small)["a"]
        filled = MemoryReading(100 * GIB, 60 * GIB - before)
        full = {"a": Account(10 * GIB, 4 * GIB, before, before)}
        assert lent(full, reading=filled) == {"a": before}

    def test_above_the_mark_nothing_is_lent(self) -> None:
        assert lent({"a": Account(0, 0)}, reading=MemoryReading(100 * GIB, 15 * GIB)) == {"a": 0}

    def test_a_size_is_each_ones_as_far_as_it_is_free(self) -> None:
        accounts = {"a": Account(0, 0), "b": Account(0, 0)}
        assert lent(accounts, "100GiB") == dict.fromkeys("ab", 100 * GIB)
        assert lent(accounts, "400GiB") == dict.fromkeys("ab", 275 * GIB)
        assert lent(accounts, "400GiB", MemoryReading(1000 * GIB, 40 * GIB)) == {"a": 0, "b": 0}

    def test_off_and_a_mark_that_leaves_nothing(self) -> None:
        assert lent({"a": Account(0, 0)}, "off") == {"a": 0}
        assert lent({"a": Account(0, 0)}, left=0.0) == {"a": 0}
        assert lent({"a": Account(0, 0)}, "100GiB", left=0.5) == {"a": 50 * GIB}

    def test_without_a_reading_nothing_is_lent_but_what_policy_says(self) -> None:
        assert lent({"a": Account(0, 0)}, reading=None) == {"a": 0}
        assert lent({"a": Account(0, 0)}, "8GiB", reading=None) == {"a": 8 * GIB}

    def test_it_is_lowered_at_once_and_raised_by_a_quarter(self) -> None:
        def after(before: int, now: int) -> int:
            account = Account(0, 0, 0, before * GIB)
            return lent({"a": account}, f"{now}GiB")["a"] // GIB

        assert [after(100, now) for now in (99, 101, 124, 125)] == [99, 100, 100, 125]

    @pytest.mark.parametrize("memory", ["auto", "30GiB", "500GiB"])
    @pytest.mark.parametrize("available", [0, 20, 90, 400])
    def test_all_together_is_never_more_than_is_free(self, memory: str, available: int) -> None:
        accounts = {
            "a": Account(60 * GIB, 30 * GIB, 5 * GIB, 9 * GIB),
            "b": Account(40 * GIB, 45 * GIB, 3 * GIB, GIB),
            "c": Account(0, 0),
        }
        reading = MemoryReading(500 * GIB, available * GIB)
        free = free_bytes(reading, reserve(reading), accounts.values(), 0)
        assert free is not None
        assert sum(lent(accounts, memory, reading).values()) <= max(0, free)


class TestAccounts:
    def test_what_is_lent_counts_as_free_until_it_is_overdue(self) -> None:
        reading = MemoryReading(1000, 500)
        assert free_bytes(reading, 0, [Account(100, 100, 50, 80)], 0) == 550
        assert free_bytes(reading, 0, [Account(100, 100, 50, 20)], 0) == 520
        assert free_bytes(None, 0, [Account(100, 100, 50, 20)], 400) == 400 - 130

    def test_what_is_kept_takes_nothing_of_a_promise(self) -> None:
        assert Account(100, 40, 50, 50).open == 60
        assert Account(100, 40, 50, 50).all == 90


class Keeping(Timed):
    """Workers that have filled what they are lent by the time somebody looks."""

    def keep(self, name: str, gib: int) -> None:
        worker: Any = self.worker(name)
        was = worker.memory
        worker.memory = ipc.Memory(was.active - was.prefix + gib * GIB, 0, 0, gib * GIB)

    def gives_back(self, name: str, after: float | None = 0.01) -> None:
        """Once it is told to; None: never."""
        worker: Any = self.worker(name)
        tell = worker.set_budget

        def told(budget: ipc.Budget) -> None:
            tell(budget)
            if after is not None and worker.memory.prefix > budget.prefix_bytes:
                self.loop.call_later(after, self.keep, name, budget.prefix_bytes // GIB)

        worker.set_budget = told


@pytest.fixture
def keeping(tmp_path):
    made: list[Keeping] = []

    def make(memory=AT_ONCE, keep="100GiB"):
        made.append(Keeping(tmp_path, f"{memory}prefix_cache: {{memory: {keep}}}\n", "\n"))
        return made[-1]

    yield make
    for world in made:
        world.close()


class TestWhoGivesWay:
    def test_a_loaded_model_is_lent_what_policy_says(self, keeping: Any) -> None:
        world = keeping()
        world.once("a")
        assert grown(world, "a").prefix_bytes == 100 * GIB
        assert world.worker("a").budgets[0].prefix_bytes == 0, "nothing while it loads"

    def test_a_load_takes_it_back_before_an_idle_model_has_to_leave(self, keeping: Any) -> None:
        world = keeping()
        world.once("a", "b")
        for name in "ab":
            world.keep(name, 100)
            world.gives_back(name)
        world.begin("c", size=700)
        world.loop.advance(1)
        assert world.loaded == ["a", "b", "c"]
        assert sum(world.worker(name).memory.prefix for name in "ab") <= 100 * GIB
        assert [e for e in world.processes.log if e.startswith("stop")] == []

    def test_it_waits_until_that_is_given_back(self, keeping: Any) -> None:
        world = keeping()
        world.once("a")
        world.keep("a", 100)
        world.gives_back("a", after=2.0)
        world.begin("c", size=850)
        world.loop.advance(1.9)
        assert world.processes.log == ["start a"]
        world.loop.advance(0.2)
        assert world.loaded == ["a", "c"]

    def test_who_does_not_give_back_has_to_leave(self, keeping: Any) -> None:
        world = keeping()
        world.once("a")
        world.keep("a", 100)
        world.begin("c", size=850)
        world.loop.advance(4.9)
        assert world.loaded == ["a"]
        world.loop.advance(0.2)
        assert world.loaded == ["c"]

    def test_looks_at_memory_meanwhile_lend_nothing_of_it_again(self, keeping: Any) -> None:
        """Else who hangs is never late."""
        world = keeping()
        world.once("a")
        world.keep("a", 100)
        world.begin("c", size=850)
        for _ in range(10):
            world.loop.do(world.residency.lend, 1.0)
            world.loop.advance(0.51)
        assert world.loaded == ["c"]

    def test_who_dies_gives_nothing_back_before_it_is_over(self, keeping: Any) -> None:
        """Nor is it asked again and again meanwhile."""
        world = keeping(PATIENT)
        world.once("a")
        world.keep("a", 100)
        worker = world.worker("a")
        del world.processes.up[worker.spec]
        dying = world.processes.leaks = worker.memory.active
        asked = []
        given_back = world.residency._room.lender.given_back

        async def counted() -> None:
            asked.append(world.loop.now)
            if len(asked) == 10:
                await asyncio.sleep(60)
            await given_back()

        world.residency._room.lender.given_back = counted
        world.begin("c", size=850)
        world.loop.advance(1.0)
        assert world.loaded == []
        assert len(asked) < 10
        world.processes.leaks -= dying
        world.loop.do(worker.on_end, worker)
        world.loop.advance(1.0)
        assert world.loaded == ["c"]

    def test_where_it_is_not_enough_a_model_leaves_and_the_others_keep_more(
        self, keeping: Any
    ) -> None:
        world = keeping(PATIENT)
        world.once("a", "b")
        for name in "ab":
            world.keep(name, 100)
            world.gives_back(name)
        world.begin("c", size=850)
        world.loop.advance(1)
        assert world.loaded == ["b", "c"]

    def test_a_need_takes_it_back_too(self, keeping: Any) -> None:
        world = keeping()
        world.once("idle")
        world.begin("busy", size=300)
        for name in ("idle", "busy"):
            world.keep(name, 100)
            world.gives_back(name)
        assert ask(world, "busy", 800).bytes == 300 * GIB, "not before it is given back"
        world.loop.advance(1)
        granted = grown(world, "busy")
        assert (granted.bytes, granted.answers) == (800 * GIB, 7)
        assert "idle" in world.loaded

    def test_a_need_that_fits_beside_it_is_granted_at_once(self, keeping: Any) -> None:
        world = keeping()
        world.begin("a", size=300)
        world.keep("a", 100)
        assert ask(world, "a", 500).bytes == 500 * GIB
        assert grown(world, "a").prefix_bytes == 100 * GIB

    def test_its_answer_comes_before_less_is_lent(self, keeping: Any) -> None:
        world = keeping(keep="600GiB")
        world.begin("a", size=300)
        world.begin("b", size=100)
        heard: list[tuple[str, int]] = []
        for name in "ab":
            tell = world.worker(name).set_budget

            def told(budget: ipc.Budget, name: str = name, tell: Any = tell) -> None:
                tell(budget)
                heard.append((name, budget.answers))

            world.worker(name).set_budget = told
        before = grown(world, "b").prefix_bytes
        assert ask(world, "a", 500).bytes == 500 * GIB
        assert heard == [("a", 7), ("a", 0), ("b", 0)]
        assert grown(world, "b").prefix_bytes < before - 50 * GIB

    def test_it_is_lent_again_when_a_model_has_left(self, keeping: Any) -> None:
        world = keeping()
        world.once("a")
        world.once("b", size=850)
        assert grown(world, "a").prefix_bytes < 50 * GIB
        world.loop.do(world.residency.unload, card("b", 850))
        world.loop.settle()
        assert grown(world, "a").prefix_bytes == 100 * GIB

    def test_what_it_keeps_is_its_own_and_goes_with_it(self, keeping: Any) -> None:
        world = keeping()
        world.once("a")
        world.keep("a", 100)
        world.gives_back("a", after=None)
        world.begin("c", size=950)
        world.loop.advance(6)
        assert world.loaded == ["c"]


class TestMarks:
    def test_a_mark_leaves_a_part_until_it_is_left(self, keeping: Any) -> None:
        world = keeping()
        world.once("a")
        for left, gib in ((0.5, 50), (0.0, 0), (1.0, 100)):
            world.loop.do(world.residency.lend, left)
            assert grown(world, "a").prefix_bytes == gib * GIB

    def test_relief_waits_for_what_is_given_back_before_a_model_goes(self, keeping: Any) -> None:
        world = keeping()
        world.once("a")
        world.keep("a", 100)
        world.gives_back("a", after=0.5)
        world.loop.do(world.residency.lend, 0.0)
        enough = lambda: world.read().available >= 900 * GIB  # noqa: E731
        assert world.loop.run(world.residency.relieve(enough, all=True)) == []
        assert world.loaded == ["a"]

    def test_who_did_not_give_back_is_not_waited_for_again_until_he_does(
        self, keeping: Any
    ) -> None:
        world = keeping()
        world.begin("a")
        world.keep("a", 100)

        def seconds() -> float:
            began = world.loop.now
            world.loop.run(world.residency.relieve(lambda: True, all=True))
            return float(world.loop.now - began)

        world.loop.do(world.residency.lend, 0.0)
        assert seconds() == pytest.approx(5.0, abs=0.1)
        assert seconds() == 0
        world.keep("a", 0)
        assert seconds() == 0
        world.loop.do(world.residency.lend, 1.0)
        world.keep("a", 100)
        world.loop.do(world.residency.lend, 0.0)
        assert seconds() == pytest.approx(5.0, abs=0.1)

    def test_an_edit_is_live(self, keeping: Any) -> None:
        world = keeping()
        world.once("a")
        world.memory = f"{AT_ONCE}prefix_cache: {{memory: off}}\n"
        world.loop.do(world.change, "\n")
        assert grown(world, "a").prefix_bytes == 0


class TestReadings:
    def test_a_request_that_ends_does_not_read_memory(self, keeping: Any) -> None:
        world = keeping()
        world.once("a")
        world.loop.advance(2)
        reads: list[int] = []
        inventory = world.residency._inventory
        read = inventory._read_memory

        def counted() -> MemoryReading:
            reads.append(1)
            return read()

        inventory._read_memory = counted
        for _ in range(20):
            world.once("a")
            world.loop.do(world.worker("a").observed)
        assert len(reads) == 1
        world.loop.advance(2)
        world.loop.do(world.worker("a").observed)
        assert len(reads) == 2

    def test_a_reading_of_a_moment_ago_knows_what_workers_have_taken_since(
        self, keeping: Any
    ) -> None:
        world = keeping()
        world.begin("a")
        world.loop.advance(2)
        world.loop.do(world.worker("a").observed)
        before = grown(world, "a").most
        world.worker("a").memory = ipc.Memory(150 * GIB, 0, 0)
        world.loop.do(world.worker("a").observed)
        assert grown(world, "a").most == before
