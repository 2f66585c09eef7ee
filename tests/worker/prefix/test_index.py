"""The index against one that compares with everything."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mlxd.ipc.messages import packed, unpacked
from mlxd.worker.prefix.index import BLOCK_BYTES, BLOCK_TOKENS, Index

SEQUENCES = st.lists(st.sampled_from((1, 2, 257, 0x01010101)), min_size=1, max_size=12)
"""Few tokens, so that they collide; and some whose bytes are each other's."""


BLOCK = 3
"""Tokens, where sequences are short."""


def common(one: bytes, other: bytes) -> int:
    """Tokens that both begin with."""
    a, b = unpacked(one), unpacked(other)
    return next(
        (n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


def index_of(filed: dict[bytes, int], **more: int) -> Index[int]:
    index: Index[int] = Index(**more)
    for ids, value in filed.items():
        index.put(ids, value)
    return index


class Model(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.index: Index[int] = Index(BLOCK)
        self.filed: dict[bytes, int] = {}
        self.count = 0

    @rule(tokens=SEQUENCES)
    def put(self, tokens: list[int]) -> None:
        self.count += 1
        self.filed[packed(tokens)] = self.count
        self.index.put(packed(tokens), self.count)

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        if self.filed:
            ids = data.draw(st.sampled_from(sorted(self.filed)))
            del self.filed[ids]
            self.index.remove(ids)

    @rule(tokens=SEQUENCES)
    def remove_what_may_not_be_there(self, tokens: list[int]) -> None:
        ids = packed(tokens)
        if ids not in self.filed:
            try:
                self.index.remove(ids)
            except KeyError:
                return
            raise AssertionError("it was removed")

    @rule(tokens=SEQUENCES)
    def look(self, tokens: list[int]) -> None:
        ids = packed(tokens)
        assert self.index.get(ids) == self.filed.get(ids)
        within = sorted((one for one in self.filed if ids.startswith(one)), key=len)
        assert self.index.within(ids) == [self.filed[one] for one in within]
        assert self.index.longest(ids) == (self.filed[within[-1]] if within else None)
        match = self.index.match(ids)
        assert match.length == max((common(ids, one) for one in self.filed), default=0)
        if match.length:
            nearest = {v: one for one, v in self.filed.items() if common(ids, one) == match.length}
            assert match.value in nearest
            assert match.ends == (ids[: 4 * match.length] in nearest.values())
            if match.ends:
                assert match.value == self.filed[ids[: 4 * match.length]]
        else:
            assert match.value is None
            assert not match.ends

    @invariant()
    def nothing_is_left_of_what_went(self) -> None:
        assert len(self.index) == len(self.filed)
        assert self.index.nbytes == index_of(self.filed, tokens=BLOCK).nbytes


TestIndex = Model.TestCase
TestIndex.settings = settings(max_examples=30, stateful_step_count=30, deadline=None, database=None)


def test_what_was_filed_last_is_given_of_several() -> None:
    index = index_of({packed([1, 2, n]): n for n in (5, 6, 7)})
    assert index.match(packed([1, 2, 9])).value == 7
    index.put(packed([1, 2, 5, 5]), 8)
    assert index.match(packed([1, 2, 9])).value == 5
    index.remove(packed([1, 2, 5]))
    assert index.match(packed([1, 2, 9])).value == 8


def test_tokens_that_several_share_are_there_once() -> None:
    head = list(range(5000))
    index = index_of({packed([*head, n]): n for n in range(1000)})
    assert index.nbytes < 4 * (5000 + 1000) + BLOCK_BYTES * (5000 // BLOCK_TOKENS + 1002)


@settings(deadline=None, database=None)
@given(tokens=st.lists(st.integers(0, 2**32 - 1), min_size=1), cut=st.integers(0))
def test_a_difference_is_found_to_the_token(tokens: list[int], cut: int) -> None:
    index = index_of({packed(tokens): 1})
    at = cut % len(tokens)
    other = [*tokens[:at], tokens[at] ^ (1 << cut % 32), *tokens[at + 1 :]]
    match = index.match(packed(other))
    assert (match.length, match.ends) == (at, False)


def calls(work: Callable[[], object]) -> int:
    """How many functions it calls, Python's and C's."""
    count = 0

    def note(frame: object, event: str, arg: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def agents(entries: int, length: int) -> list[bytes]:
    """Conversations behind one system prompt."""
    head = list(range(length - 200))
    return [packed([*head, *range(1000 * n, 1000 * n + 200)]) for n in range(entries)]


def branches(entries: int, length: int) -> list[bytes]:
    """One conversation that was gone back in."""
    trunk = list(range(length))
    return [packed([*trunk[: length * n // entries], 7, 7, 7]) for n in range(1, entries)]


def turns(entries: int, length: int) -> list[bytes]:
    """One conversation, turn by turn."""
    trunk = list(range(length))
    return [packed(trunk[: length * n // entries]) for n in range(1, entries)]


@pytest.mark.parametrize("sequences", [agents, branches, turns])
def test_a_look_takes_steps_for_blocks_and_not_for_entries(
    sequences: Callable[[int, int], list[bytes]],
) -> None:
    blocks = 25
    asked = packed([*range(blocks * BLOCK_TOKENS), 5])
    steps = {}
    for entries in (50, 500):
        filed = sequences(entries, blocks * BLOCK_TOKENS)
        index = index_of({ids: n for n, ids in enumerate(filed)})
        steps[entries] = max(calls(partial(look, asked)) for look in (index.match, index.longest))
    assert steps[500] <= steps[50] + 6 * 500 // blocks
    assert steps[50] <= 5 * blocks
