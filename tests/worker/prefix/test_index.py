"""The index against one that compares with everything."""

from __future__ import annotations

import sys
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mlxd.ipc.messages import packed, unpacked
from mlxd.worker.prefix.index import NODE_BYTES, Tree

SEQUENCES = st.lists(st.sampled_from((1, 2, 257, 0x01010101)), min_size=1, max_size=12)
"""Few tokens, so that they collide; and some whose bytes are each other's."""


def common(one: bytes, other: bytes) -> int:
    """Tokens that both begin with."""
    a, b = unpacked(one), unpacked(other)
    return next(
        (n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


def tree_of(filed: dict[bytes, int]) -> Tree[int]:
    tree: Tree[int] = Tree()
    for ids, value in filed.items():
        tree.put(ids, value)
    return tree


class Model(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.tree: Tree[int] = Tree()
        self.filed: dict[bytes, int] = {}
        self.count = 0

    @rule(tokens=SEQUENCES)
    def put(self, tokens: list[int]) -> None:
        self.count += 1
        self.filed[packed(tokens)] = self.count
        self.tree.put(packed(tokens), self.count)

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        if self.filed:
            ids = data.draw(st.sampled_from(sorted(self.filed)))
            del self.filed[ids]
            self.tree.remove(ids)

    @rule(tokens=SEQUENCES)
    def remove_what_may_not_be_there(self, tokens: list[int]) -> None:
        ids = packed(tokens)
        if ids not in self.filed:
            try:
                self.tree.remove(ids)
            except KeyError:
                return
            raise AssertionError("it was removed")

    @rule(tokens=SEQUENCES)
    def look(self, tokens: list[int]) -> None:
        ids = packed(tokens)
        assert self.tree.get(ids) == self.filed.get(ids)
        within = sorted((one for one in self.filed if ids.startswith(one)), key=len)
        assert self.tree.within(ids) == [self.filed[one] for one in within]
        assert self.tree.longest(ids) == (self.filed[within[-1]] if within else None)
        match = self.tree.match(ids)
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
        assert len(self.tree) == len(self.filed)
        assert self.tree.nbytes == tree_of(self.filed).nbytes


TestIndex = Model.TestCase


def test_what_was_filed_last_is_given_of_several() -> None:
    tree = tree_of({packed([1, 2, n]): n for n in (5, 6, 7)})
    assert tree.match(packed([1, 2, 9])).value == 7
    tree.put(packed([1, 2, 5, 5]), 8)
    assert tree.match(packed([1, 2, 9])).value == 5
    tree.remove(packed([1, 2, 5]))
    assert tree.match(packed([1, 2, 9])).value == 8


def test_tokens_that_several_share_are_there_once() -> None:
    head = [n % 50_000 for n in range(10_000)]
    tree = tree_of({packed([*head, n]): n for n in range(1000)})
    assert tree.nbytes < 4 * 10_000 + 1002 * (NODE_BYTES + 4)


@given(tokens=st.lists(st.integers(0, 2**32 - 1), min_size=1), cut=st.integers(0))
def test_a_difference_is_found_to_the_token(tokens: list[int], cut: int) -> None:
    tree = tree_of({packed(tokens): 1})
    at = cut % len(tokens)
    other = [*tokens[:at], tokens[at] ^ (1 << cut % 32), *tokens[at + 1 :]]
    match = tree.match(packed(other))
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


def prompts(entries: int, length: int) -> list[bytes]:
    """Conversations that share a system's turn by tens, each of them half a prompt long."""
    return [
        packed(
            [
                *((n // 10, k)[k % 2] for k in range(length // 2)),
                *((n, k)[k % 2] for k in range(length // 2)),
            ]
        )
        for n in range(entries)
    ]


def test_a_look_takes_no_more_steps_for_more_entries_or_longer_ones() -> None:
    """Each doubling of a prompt is two more comparisons of halves, where it parts from others."""
    steps: dict[tuple[int, int], int] = {}
    for entries, length in ((10, 400), (1000, 400), (10, 6400)):
        filed = prompts(entries, length)
        tree = tree_of(dict(zip(filed, range(entries), strict=True)))
        other = filed[3][:-8] + packed([7, 7])
        steps[entries, length] = max(
            calls(lambda t=tree, o=other: t.match(o)), calls(lambda t=tree, o=other: t.within(o))
        )
    assert steps[1000, 400] <= steps[10, 400] + 2
    assert steps[10, 6400] <= steps[10, 400] + 3 * 4
