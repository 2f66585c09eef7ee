"""A tree of short runs of tokens, in which what a run begins with is found.

An edge has a run as bytes: however long it is, it is compared at once. A look takes as many steps
as there are branches on its way, so this is for the inside of a block (`index`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, TypeVar

from mlxd.core.beginnings import common
from mlxd.ipc.messages import TOKEN_BYTES

NODE_BYTES = 400
"""Of a node beside its label, about: two objects, a dict and its place in another."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Match(Generic[T]):
    """The longest common beginning of a sequence and any of those filed."""

    length: int
    """Bytes: of whole tokens."""
    value: T | None
    """Of one that begins so: the one that ends there, else the one that was filed last. None with
    nothing in common."""
    ends: bool
    """Whether one ends there."""


class _Node(Generic[T]):
    __slots__ = ("children", "label", "value")

    def __init__(self, label: bytes) -> None:
        self.label = label
        self.children: dict[bytes, _Node[T]] = {}
        """By the first token of their labels; in the order in which something was filed below."""
        self.value: T | None = None


class Radix(Generic[T]):
    """One value for each sequence; sequences are packed tokens (`ipc.messages.packed`)."""

    def __init__(self) -> None:
        self._root: _Node[T] = _Node(b"")
        self._count = 0
        self.nbytes = 0
        """Of the tree itself, about."""

    def __len__(self) -> int:
        return self._count

    def get(self, ids: bytes) -> T | None:
        """What is filed under exactly this."""
        at, node = self._passed(ids)[0][-1]
        return node.value if at == len(ids) else None

    def put(self, ids: bytes, value: T) -> None:
        """File it, in place of what may be filed there."""
        passed, at, last = self._passed(ids)
        _refresh(passed)
        node = passed[-1][1]
        if last is not node:
            node = self._split(node, last, at - passed[-1][0])
        if at < len(ids):
            node = self._grow(node, ids[at:])
        self._count += node.value is None
        node.value = value

    def remove(self, ids: bytes) -> None:
        """Raises KeyError for what is not filed."""
        passed, _, _ = self._passed(ids)
        at, node = passed[-1]
        if at != len(ids) or node.value is None:
            raise KeyError(ids)
        node.value = None
        self._count -= 1
        nodes = [node for _, node in passed]
        if not node.children and len(nodes) > 1:
            nodes.pop()
            del nodes[-1].children[node.label[:TOKEN_BYTES]]
            self.nbytes -= NODE_BYTES + len(node.label)
        self._join(nodes)

    def match(self, ids: bytes) -> Match[T]:
        """With whichever shares most with this."""
        passed, at, last = self._passed(ids)
        ends = passed[-1][1] is last and last.value is not None
        return Match(at, _latest(last) if at else None, ends and at > 0)

    def latest(self) -> T | None:
        """What was filed last, about."""
        return _latest(self._root)

    def within(self, ids: bytes) -> list[tuple[int, T]]:
        """All that are beginnings of this, or this itself, the shortest first; with their bytes."""
        return [(at, node.value) for at, node in self._passed(ids)[0] if node.value is not None]

    def _passed(self, ids: bytes) -> tuple[list[tuple[int, _Node[T]]], int, _Node[T]]:
        """The nodes that this goes through to their ends, and where those are in it; how far it
        goes along in all; and the node that it goes into last, whether or not to its end.
        """
        node, at = self._root, 0
        passed = [(at, node)]
        while (child := node.children.get(ids[at : at + TOKEN_BYTES])) is not None:
            shared = _alike(child.label, ids, at)
            at += shared
            if shared < len(child.label):
                return passed, at, child
            passed.append((at, child))
            node = child
        return passed, at, node

    def _split(self, parent: _Node[T], node: _Node[T], at: int) -> _Node[T]:
        """Put a node between the two, after so many bytes of the lower one's label."""
        upper: _Node[T] = _Node(node.label[:at])
        node.label = node.label[at:]
        upper.children[node.label[:TOKEN_BYTES]] = node
        parent.children[upper.label[:TOKEN_BYTES]] = upper
        self.nbytes += NODE_BYTES
        return upper

    def _grow(self, parent: _Node[T], label: bytes) -> _Node[T]:
        leaf: _Node[T] = _Node(label)
        parent.children[label[:TOKEN_BYTES]] = leaf
        self.nbytes += NODE_BYTES + len(label)
        return leaf

    def _join(self, path: list[_Node[T]]) -> None:
        """A node that only leads to one other is none: its last one, if it is that."""
        node = path[-1]
        if len(path) == 1 or node.value is not None or len(node.children) != 1:
            return
        (child,) = node.children.values()
        child.label = node.label + child.label
        path[-2].children[child.label[:TOKEN_BYTES]] = child
        self.nbytes -= NODE_BYTES


def _refresh(passed: list[tuple[int, _Node[T]]]) -> None:
    """What is on the way becomes the last child of its parent."""
    for (_, parent), (_, node) in pairwise(passed):
        first = node.label[:TOKEN_BYTES]
        parent.children[first] = parent.children.pop(first)


def _latest(node: _Node[T]) -> T | None:
    while node.value is None and node.children:
        node = node.children[next(reversed(node.children))]
    return node.value


def _alike(label: bytes, ids: bytes, at: int) -> int:
    """How many bytes, in whole tokens, `ids` has in common with a label from `at` on."""
    if ids.startswith(label, at):
        return len(label)
    shared = common(label, ids[at : at + len(label)])
    return shared - shared % TOKEN_BYTES
