"""Finds the beginnings of a sequence of tokens among others.

Sequences are cut into blocks, and a block is found by its tokens' hash behind the one before it: a
look takes a step for each block that is shared, whatever else is filed. Only where it parts from
all others, inside one block, those are looked through (`radix`). Tokens that several sequences
begin with are there once.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from operator import itemgetter
from typing import Generic, TypeVar

from mlxd.ipc.messages import TOKEN_BYTES
from mlxd.worker.prefix.radix import Match, Radix

BLOCK_TOKENS = 256
BLOCK_BYTES = 400
"""What a block takes beside its tokens, about."""
T = TypeVar("T")


class _Block(Generic[T]):
    """A place behind some number of whole blocks."""

    __slots__ = ("before", "children", "heads", "tails", "value")

    def __init__(self, before: list[tuple[int, T]]) -> None:
        self.children: dict[bytes, _Block[T]] = {}
        """By their tokens; in the order in which something was filed below."""
        self.heads: Radix[_Block[T]] | None = None
        """The same, where there are several."""
        self.tails: Radix[T] | None = None
        """What ends before the next block does, where anything does."""
        self.value: T | None = None
        """What ends here."""
        self.before = before
        """Those of the parent's `tails` that this block begins with, the shortest first."""

    @property
    def is_idle(self) -> bool:
        return self.value is None and self.tails is None and not self.children

    def latest(self) -> T | None:
        """Of what was filed in it and below, one of the last."""
        block = self
        while block.value is None and block.children:
            block = block.children[next(reversed(block.children))]
        if block.value is None and block.tails is not None:
            return block.tails.latest()
        return block.value


class Index(Generic[T]):
    """One value for each sequence; sequences are packed tokens (`ipc.messages.packed`)."""

    def __init__(self, tokens: int = BLOCK_TOKENS) -> None:
        """Of a block."""
        self._size = tokens * TOKEN_BYTES
        self._root: _Block[T] = _Block([])
        self._count = 0
        self.nbytes = 0
        """Of the index itself, about."""

    def __len__(self) -> int:
        return self._count

    def get(self, ids: bytes) -> T | None:
        """What is filed under exactly this."""
        path, rest = self._path(ids)
        if len(rest) >= self._size:
            return None
        if not rest:
            return path[-1].value
        return path[-1].tails.get(rest) if path[-1].tails is not None else None

    def put(self, ids: bytes, value: T) -> None:
        """File it, in place of what may be filed there."""
        if self.get(ids) is not None:
            self.remove(ids)
        block = self._root
        whole = len(ids) - len(ids) % self._size
        for tokens in self._blocks(ids):
            child = block.children.pop(tokens, None) or self._child(block, tokens)
            block.children[tokens] = child
            block = child
        if whole < len(ids):
            self._put_tail(block, ids[whole:], value)
        else:
            block.value = value
        self._count += 1

    def remove(self, ids: bytes) -> None:
        """Raises KeyError for what is not filed."""
        path, rest = self._path(ids)
        if self.get(ids) is None:
            raise KeyError(ids)
        if rest:
            self._remove_tail(path[-1], rest)
        else:
            path[-1].value = None
        self._count -= 1
        for parent, tokens in reversed(list(zip(path, self._blocks(ids), strict=False))):
            if not parent.children[tokens].is_idle:
                break
            self._remove_child(parent, tokens)

    def match(self, ids: bytes) -> Match[T]:
        """With whichever shares most with this; in tokens."""
        path, rest = self._path(ids)
        block, at = path[-1], len(ids) - len(rest)
        tail = block.tails.match(rest[: self._size]) if block.tails is not None else _nothing
        head = _head_match(block, rest[: self._size])
        more = max(tail.length, head.length)
        if not more:
            ends = at > 0 and block.value is not None
            return Match(at // TOKEN_BYTES, block.latest() if at else None, ends)
        length = (at + more) // TOKEN_BYTES
        if tail.length == more and (tail.ends or head.length < more):
            return Match(length, tail.value, tail.ends)
        return Match(length, head.value.latest() if head.value is not None else None, ends=False)

    def longest(self, ids: bytes) -> T | None:
        """Of those that are beginnings of this, or this itself."""
        path, rest = self._path(ids)
        last = path[-1]
        if last.tails is not None and (within := last.tails.within(rest[: self._size])):
            return within[-1][1]
        for block in reversed(path):
            if block.value is not None:
                return block.value
            if block.before:
                return block.before[-1][1]
        return None

    def within(self, ids: bytes) -> list[T]:
        """All that are beginnings of this, or this itself, the shortest first."""
        path, rest = self._path(ids)
        found: list[T] = []
        for block in path:
            found += [value for _, value in block.before]
            if block.value is not None:
                found.append(block.value)
        if (tails := path[-1].tails) is not None:
            found += [value for _, value in tails.within(rest[: self._size])]
        return found

    def _path(self, ids: bytes) -> tuple[list[_Block[T]], bytes]:
        """The blocks that this begins with, and what is behind them."""
        block, at = self._root, 0
        path = [block]
        while (child := block.children.get(ids[at : at + self._size])) is not None:
            path.append(child)
            block = child
            at += self._size
        return path, ids[at:]

    def _blocks(self, ids: bytes) -> Iterator[bytes]:
        """The whole ones."""
        return (ids[at : at + self._size] for at in range(0, len(ids) - self._size + 1, self._size))

    def _child(self, parent: _Block[T], tokens: bytes) -> _Block[T]:
        child: _Block[T] = _Block([] if parent.tails is None else parent.tails.within(tokens))
        self.nbytes += BLOCK_BYTES + self._size
        if parent.children and parent.heads is None:
            parent.heads = Radix()
            for known, block in parent.children.items():
                parent.heads.put(known, block)
            self.nbytes += parent.heads.nbytes
        if parent.heads is not None:
            self.nbytes += _grown(parent.heads, tokens, child)
        return child

    def _remove_child(self, parent: _Block[T], tokens: bytes) -> None:
        del parent.children[tokens]
        self.nbytes -= BLOCK_BYTES + self._size
        heads = parent.heads
        if heads is None:
            return
        before = heads.nbytes
        heads.remove(tokens)
        if len(heads) > 1:
            self.nbytes += heads.nbytes - before
        else:
            parent.heads = None
            self.nbytes -= before

    def _put_tail(self, block: _Block[T], tokens: bytes, value: T) -> None:
        if block.tails is None:
            block.tails = Radix()
        self.nbytes += _grown(block.tails, tokens, value)
        for known, child in block.children.items():
            if known.startswith(tokens):
                insort(child.before, (len(tokens), value), key=itemgetter(0))

    def _remove_tail(self, block: _Block[T], tokens: bytes) -> None:
        tails = block.tails
        assert tails is not None
        before = tails.nbytes
        tails.remove(tokens)
        self.nbytes += tails.nbytes - before
        if not tails:
            block.tails = None
        for known, child in block.children.items():
            if known.startswith(tokens):
                child.before = [one for one in child.before if one[0] != len(tokens)]


_nothing: Match[None] = Match(0, None, ends=False)


def _head_match(block: _Block[T], tokens: bytes) -> Match[_Block[T]]:
    """With the children, of which none begins with all of this block."""
    if block.heads is not None:
        return block.heads.match(tokens)
    alone: Radix[_Block[T]] = Radix()
    for known, child in block.children.items():
        alone.put(known, child)
    return alone.match(tokens)


def _grown(tree: Radix[T], tokens: bytes, value: T) -> int:
    """By how many bytes, putting it there."""
    before = tree.nbytes
    tree.put(tokens, value)
    return tree.nbytes - before
