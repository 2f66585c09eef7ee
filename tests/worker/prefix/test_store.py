"""The store, with caches that hold the tokens themselves: what is found is what was kept."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from mlx_lm.models.cache import ArraysCache, KVCache

from mlxd.ipc.messages import packed
from mlxd.worker.engine import Kind, Prompt
from mlxd.worker.prefix import snapshot
from mlxd.worker.prefix.entry import SYSTEM_SECONDS, Entry
from mlxd.worker.prefix.index import Index
from mlxd.worker.prefix.store import LEAST_TOKENS, Store
from mlxd.worker.sampling import greedy

pytestmark = pytest.mark.mlx

TOKEN_BYTES = 8
"""Of one token in the caches here."""
STATE_BYTES = 40
ROOM = 1 << 20


def caches_of(tokens: list[int], *, trimmable: bool) -> list[Any]:
    """As if these had been read: each token is its own key, a state is their sum."""
    full = KVCache()
    rows = mx.array(tokens, dtype=mx.float32).reshape(1, 1, -1, 1)
    full.update_and_fetch(rows, rows)
    if trimmable:
        return [full]
    state = ArraysCache(1)
    state[0] = mx.full((1, STATE_BYTES // 4), float(sum(tokens)))
    return [state, full]


def tokens_in(caches: list[Any]) -> list[int]:
    full = caches[-1]
    keys, values = full.keys_and_values()
    assert bool(mx.array_equal(keys, values))
    tokens = [int(n) for n in keys.reshape(-1).tolist()]
    assert len(tokens) == full.offset
    if len(caches) > 1:
        assert caches[0][0].tolist()[0][0] == sum(tokens)
    return tokens


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


class Scene:
    """A store with a clock of its own."""

    def __init__(self, *, trimmable: bool = True, limit: int = ROOM, **more: Any) -> None:
        self.clock = Clock()
        self.store = Store(trimmable=trimmable, limit=limit, clock=self.clock, **more)

    def keep(
        self, tokens: list[int], kind: Kind = "prompt", *, owner: str = "", shared: int = 0
    ) -> None:
        prompt = Prompt([*tokens, 1], 1, greedy, owner=owner, shared=shared)
        caches = caches_of(tokens, trimmable=self.store.trimmable)
        self.store.keep(prompt, len(tokens), caches, kind)

    def found(self, tokens: list[int], owner: str = "") -> int:
        prompt = Prompt(tokens, 1, greedy, owner=owner)
        reach = self.store.reach(prompt)
        found = self.store.find(prompt)
        assert reach == (found.length if found is not None else 0)
        if found is not None:
            assert tokens_in(found.caches) == tokens[: found.length]
        return reach

    def missed(self, tokens: list[int], owner: str = "") -> int:
        return self.store.missed(Prompt(tokens, 1, greedy, owner=owner))

    @property
    def array_bytes(self) -> int:
        caches = [cache for entry in self.store for cache in entry.caches]
        return sum(array.nbytes for array in snapshot.arrays_of(caches))

    @property
    def lengths(self) -> list[int]:
        return sorted(entry.length for entry in self.store)


def run(start: int, length: int) -> list[int]:
    return list(range(start, start + length))


A, B, C = run(1000, 100), run(2000, 100), run(3000, 100)


def test_any_common_beginning_is_found_and_never_the_last_token() -> None:
    scene = Scene()
    scene.keep(A)
    assert scene.found([*A, 5]) == 100
    assert scene.found(A) == 99
    assert scene.found(A[:50]) == 49
    assert scene.found([*A[:70], *B]) == 70
    assert scene.found(B) == 0
    assert scene.found([*A[: LEAST_TOKENS - 1], *B]) == 0


def test_what_cannot_be_trimmed_is_found_whole_or_not_at_all() -> None:
    scene = Scene(trimmable=False)
    scene.keep(A[:40])
    scene.keep(A)
    assert scene.found([*A, 5]) == 100
    assert scene.found(A) == 40
    assert scene.found([*A[:99], 5]) == 40
    assert scene.found(A[:40]) == 0


@pytest.mark.parametrize("trimmable", [True, False])
def test_an_owner_finds_its_own(trimmable: bool) -> None:
    scene = Scene(trimmable=trimmable)
    scene.keep([*A, *B], owner="one")
    assert scene.found([*A, *B, 5], "one") == 200
    assert scene.found([*A, *B, 5], "two") == 0
    assert scene.found([*A, *B, 5]) == 0
    assert scene.missed([*A, *B[:50], *C], "two") == -1


def test_what_everybody_may_share_of_a_prompt_is_found_by_all_and_nothing_else() -> None:
    scene = Scene()
    scene.keep([*A, *B], owner="one", shared=100)
    assert scene.found([*A, *B, 5], "two") == 100
    assert scene.found([*A[:60], *C], "two") == 60
    assert scene.found([*A, *B, 5], "one") == 200
    assert scene.missed([*A, *B[:50], *C], "two") == -1


def test_a_systems_turn_that_cannot_be_trimmed_serves_everybody() -> None:
    scene = Scene(trimmable=False)
    scene.keep(A, "system", owner="one", shared=100)
    scene.keep([*A, *B], owner="one", shared=100)
    assert scene.found([*A, *B, 5], "two") == 100
    assert scene.found([*A, *B, 5], "one") == 200


def test_a_systems_turn_is_one_only_as_far_as_it_is_shared() -> None:
    scene = Scene(trimmable=False)
    scene.keep([*A, *B], "system", owner="one", shared=100)
    assert [entry.kind for entry in scene.store] == ["turn"]
    assert scene.found([*A, *B, 5], "two") == 0


def test_the_systems_turn_of_many_conversations_is_held_once() -> None:
    scene = Scene()
    scene.keep([*A, *B], shared=100)
    assert scene.array_bytes == 200 * TOKEN_BYTES
    scene.keep([*A, *C], shared=100)
    assert scene.lengths == [100, 200, 200]
    scene.keep([*A, *C, 5], shared=100)
    assert scene.lengths == [100, 200, 201]
    assert scene.array_bytes == 401 * TOKEN_BYTES


@pytest.mark.parametrize("trimmable", [True, False])
def test_what_is_gone_on_from_makes_way(trimmable: bool) -> None:
    scene = Scene(trimmable=trimmable)
    scene.keep(A, "answer")
    scene.keep([*A, *B], "answer")
    assert scene.lengths == ([200] if trimmable else [100, 200])
    scene.keep(A, "prompt")
    assert scene.lengths == ([200] if trimmable else [100, 200])


def test_shorter_ones_that_cannot_be_trimmed_share_what_full_layers_hold() -> None:
    scene = Scene(trimmable=False)
    scene.keep(A[:50])
    scene.keep(A)
    scene.keep([*A, *B])
    assert scene.array_bytes == 200 * TOKEN_BYTES + 3 * STATE_BYTES
    evicted: list[int] = []
    scene.store.on_evict = lambda entry: evicted.append(entry.length)
    scene.store.shrink(scene.store.nbytes - 1)
    assert evicted == [200]
    assert scene.array_bytes == 100 * TOKEN_BYTES + 2 * STATE_BYTES
    assert scene.found([*A, 5]) == 100
    assert scene.found([*A[:50], *C]) == 50


def test_the_longest_unused_leaves_first() -> None:
    scene = Scene()
    for tokens in (A, B, C):
        scene.keep(tokens)
    assert scene.found([*A, 5]) == 100
    scene.store.shrink(scene.store.nbytes - 1)
    assert scene.found([*B, 5]) == 0
    assert (scene.found([*A, 5]), scene.found([*C, 5])) == (100, 100)


def test_what_is_freed_may_be_filled_again() -> None:
    scene = Scene()
    for tokens in (A, B, C):
        scene.keep(tokens)
    scene.store.free(1)
    assert len(scene.store) == 2
    scene.store.free(2 * ROOM)
    assert len(scene.store) == 0
    scene.keep(A)
    assert scene.found([*A, 5]) == 100


def test_a_systems_turn_that_has_served_leaves_late_but_leaves() -> None:
    scene = Scene(trimmable=False)
    for tokens in (A, B):
        scene.keep(tokens, "system", shared=100)
    assert scene.found([*A, 5]) == 100
    scene.keep(C)
    scene.keep(run(4000, 100))
    each = scene.store.nbytes // 4
    scene.store.shrink(3 * each)
    assert scene.found([*B, 5]) == 0  # it has served nobody
    scene.store.shrink(2 * each)
    assert scene.found([*C, 5]) == 0
    assert scene.found([*A, 5]) == 100
    scene.clock.now += SYSTEM_SECONDS
    assert scene.found([*run(4000, 100), 5]) == 100
    scene.clock.now += 10
    scene.store.shrink(each)
    assert scene.found([*A, 5]) == 0


def test_what_the_operator_wants_kept_leaves_last() -> None:
    scene = Scene(keeps=lambda entry: entry.tokens[0] == 1000)
    scene.keep(A)
    each = scene.store.nbytes
    scene.keep(B)
    scene.store.shrink(each)
    assert scene.found([*A, 5]) == 100
    scene.keep(C)  # nor does it leave for a new one
    assert (scene.found([*A, 5]), scene.found([*C, 5])) == (100, 0)
    scene.store.rule(lambda entry: False)
    scene.keep(C)
    assert (scene.found([*A, 5]), scene.found([*C, 5])) == (0, 100)
    scene.store.shrink(0)
    assert len(scene.store) == 0


def test_nor_does_it_leave_for_what_everybody_may_share_of_a_new_one() -> None:
    """Which is to be kept, too."""
    scene = Scene(keeps=lambda entry: entry.public)
    scene.keep(A, "system", shared=100)
    scene.store.shrink(scene.store.nbytes * 3 // 2)
    scene.keep([*B, *run(5000, 5)], owner="one", shared=100)
    assert scene.lengths == [100]
    assert scene.found([*A, 5]) == 100
    scene.store.shrink(ROOM)
    scene.keep([*B, *run(5000, 5)], owner="one", shared=100)
    assert scene.lengths == [100, 100, 105]


def test_what_rested_on_a_new_one_that_had_no_room_is_within_the_limit() -> None:
    """What everybody may share rested on another's before, and takes room of its own now."""
    scene = Scene(keeps=lambda entry: True)
    scene.keep([*A, *run(5000, 5)], owner="one", shared=100)
    scene.store.shrink(scene.store.nbytes)
    scene.keep([*A, *run(6000, 5)], owner="two", shared=100)
    assert 0 < scene.store.nbytes <= scene.store.limit


def test_what_has_no_room_displaces_nothing() -> None:
    scene = Scene()
    scene.keep(A)
    scene.store.shrink(scene.store.nbytes)
    scene.keep(run(5000, 1000))
    assert scene.lengths == [100]


def test_who_evicts_is_told_before() -> None:
    told: list[tuple[list[int], str]] = []
    scene = Scene()
    scene.store.on_evict = lambda e: told.append((tokens_in(e.copied()), e.owner))
    scene.keep(A, owner="one")
    scene.keep([*A, *B], owner="one")  # what makes way is not evicted
    scene.store.shrink(0)
    assert told == [([*A, *B], "one")]


def test_what_was_evicted_is_adopted_again() -> None:
    gone: list[Entry] = []
    scene = Scene(trimmable=False)
    scene.store.on_evict = gone.append
    scene.keep(A, "system", owner="one", shared=100)
    scene.keep([*A, *B], "answer", owner="one", shared=100)
    scene.store.shrink(0)
    scene.store.shrink(ROOM)
    for entry in gone:
        shared = entry.length if entry.public else 0
        back = scene.store.adopt(entry.ids, entry.copied(), entry.kind, entry.owner, shared)
        assert back is not None
        assert (back.kind, back.owner, back.public) == (entry.kind, entry.owner, entry.public)
    assert scene.found([*A, *B, 5], "one") == 200
    assert scene.found([*A, *B, 5], "two") == 100


def test_where_the_nearest_differs() -> None:
    scene = Scene()
    scene.keep([*A, *B])
    assert scene.missed([*A, *C]) == 100
    assert scene.missed([*A[:60], *C]) == 60
    assert scene.missed([*A, *B, 5]) == -1
    assert scene.missed([*A, *B]) == -1
    assert scene.missed(A) == -1
    assert scene.missed(C) == -1
    assert scene.missed([*A[: LEAST_TOKENS - 1], *C]) == -1


def test_caches_that_hold_something_else_are_not_kept() -> None:
    scene = Scene()
    caches = caches_of(A, trimmable=True)
    scene.store.keep(Prompt([*A, *B], 1, greedy), 150, caches, "prompt")
    assert len(scene.store) == 0


def test_another_thread_may_ask_how_much_is_kept_while_owners_come_and_go() -> None:
    """Who asks is the one that answers pings, and ends the process where it raises."""
    scene = Scene(limit=4000)
    over = threading.Event()

    def ask() -> int:
        asked = 0
        while not over.is_set():
            assert scene.store.nbytes >= 0
            asked += 1
        return asked

    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(ask)
        for n in range(200):
            scene.keep(list(range(n % 50, n % 50 + 20)), owner=str(n % 40))
        over.set()
        assert asked.result() > 0


def test_tokens_may_be_known_packed_in_part() -> None:
    scene = Scene()
    prompt = Prompt([*A, *B], 1, greedy, ids=packed(A))
    scene.store.keep(prompt, 150, caches_of([*A, *B[:50]], trimmable=True), "partial")
    assert scene.found([*A, *B]) == 150
    assert scene.store.reach(prompt) == 150


BLOCKS = [run(n * 100, LEAST_TOKENS - 3) for n in range(3)]
"""Prompts are made of these, so that they share beginnings of many lengths."""
PARTS = st.lists(st.integers(0, 2), min_size=1, max_size=5)
OWNERS = st.sampled_from(("", "one", "two"))


class Model(RuleBasedStateMachine):
    """Against one that compares with everything that is kept."""

    @initialize(trimmable=st.booleans())
    def begin(self, trimmable: bool) -> None:
        self.scene = Scene(trimmable=trimmable, limit=6000, keeps=lambda e: e.length == 39)

    @rule(
        parts=PARTS,
        owner=OWNERS,
        shared=st.integers(0, 60),
        kind=st.sampled_from(("system", "turn", "prompt", "answer", "partial")),
    )
    def keep(self, parts: list[int], owner: str, shared: int, kind: Kind) -> None:
        tokens = [token for n in parts for token in BLOCKS[n]]
        self.scene.keep(tokens, kind, owner=owner, shared=shared)

    @rule(parts=PARTS, owner=OWNERS, extra=st.lists(st.integers(0, 2), max_size=1))
    def look(self, parts: list[int], owner: str, extra: list[int]) -> None:
        tokens = [token for n in parts for token in BLOCKS[n]] + extra
        best = max((self.serves(e, tokens, owner) for e in self.scene.store), default=0)
        wanted = best if best >= LEAST_TOKENS else 0
        assert self.scene.found(tokens, owner) == wanted

    @rule(limit=st.integers(0, 6000))
    def shrink(self, limit: int) -> None:
        self.scene.store.shrink(limit)
        assert self.scene.store.nbytes <= limit
        self.scene.store.shrink(6000)

    def serves(self, entry: Entry, tokens: list[int], owner: str) -> int:
        if not entry.public and entry.owner != owner:
            return 0
        most, kept = len(tokens) - 1, entry.tokens
        common = next(
            (n for n, (a, b) in enumerate(zip(kept, tokens, strict=False)) if a != b),
            min(len(kept), len(tokens)),
        )
        if self.scene.store.trimmable:
            return min(common, most)
        return common if common == len(kept) <= most else 0

    @invariant()
    def it_holds_what_it_says(self) -> None:
        store = self.scene.store
        assert store.nbytes <= 6000
        arrays: dict[int, int] = {}
        trees: dict[str | None, Index[Entry]] = {}
        for entry in store:
            assert tokens_in(entry.copied()) == entry.tokens
            arrays.update((id(a), a.nbytes) for a in snapshot.arrays_of(entry.caches))
            tree = trees.setdefault(None if entry.public else entry.owner, Index())
            assert tree.get(entry.ids) is None
            tree.put(entry.ids, entry)
        index = sum(tree.nbytes for tree in trees.values())
        ids = sum(len(entry.ids) for entry in store)
        assert store.nbytes == sum(arrays.values()) + index + ids

    @invariant()
    def nothing_is_held_on_to(self) -> None:
        """Arrays are as long as the longest that uses them."""
        users: dict[int, int] = {}
        for entry in self.scene.store:
            keys = entry.caches[-1].keys
            users[id(keys)] = max(users.get(id(keys), 0), entry.length)
            assert keys.shape[-2] >= entry.length
        for entry in self.scene.store:
            keys = entry.caches[-1].keys
            assert keys.shape[-2] == users[id(keys)]


TestStore = Model.TestCase
TestStore.settings = settings(max_examples=25, stateful_step_count=25, deadline=None, database=None)
