"""Beginnings of prompts, kept in memory within a number of bytes. Knows no files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlxd.ipc.messages import TOKEN_BYTES, packed
from mlxd.worker.engine import Kind, Prompt
from mlxd.worker.prefix import snapshot
from mlxd.worker.prefix.entry import Entry, Queue
from mlxd.worker.prefix.index import Index

LEAST_TOKENS = 16
"""A shorter beginning is neither kept nor found: reading it again costs no more."""


@dataclass(slots=True)
class Beginning:
    """As `worker.engine.Found`."""

    length: int
    caches: list[Any]


class Store:
    """As `worker.engine.Prefixes`.

    Those of one owner are filed apart, and so are those that serve everybody: whoever looks cannot
    come upon what is another's.
    """

    def __init__(
        self,
        *,
        trimmable: bool,
        limit: int = 0,
        clock: Callable[[], float] = time.monotonic,
        keeps: Callable[[Entry], bool] = lambda entry: False,
    ) -> None:
        """`trimmable`: `snapshot.can_be_trimmed` of the model's caches. `keeps` says what leaves
        last.
        """
        self.trimmable = trimmable
        self.limit = limit
        self.on_evict: Callable[[Entry], None] = lambda entry: None
        """Is told what is about to leave for want of room."""
        self._clock = clock
        self._keeps = keeps
        self._queue = Queue()
        self._public: Index[Entry] = Index()
        self._own: dict[str, Index[Entry]] = {}
        self._held = _Held()
        self._ids_bytes = 0
        self._unmade: set[Entry] = set()
        """Those whose arrays are not all computed."""

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[Entry]:
        """Those that would leave first come first, about."""
        return iter(list(self._queue))

    @property
    def nbytes(self) -> int:
        """Of caches, each array once, and of the index. For any thread."""
        trees = self._public.nbytes + sum(tree.nbytes for tree in [*self._own.values()])
        return self._held.nbytes + self._ids_bytes + trees

    # -- looking

    def find(self, prompt: Prompt) -> Beginning | None:
        length, entry = self._best(prompt)
        if entry is None:
            return None
        entry.served = True
        self._use(entry)
        return Beginning(length, snapshot.given(entry.caches, length))

    def reach(self, prompt: Prompt) -> int:
        return self._best(prompt)[0]

    def missed(self, prompt: Prompt) -> int:
        """Of several that come as far, one that ends there is the nearest: it served whole."""
        ids = _ids_of(prompt, len(prompt.tokens))
        matches = [tree.match(ids) for tree in self._trees(prompt.owner)]
        length, ends = max((match.length, match.ends) for match in matches)
        differs = LEAST_TOKENS <= length < len(prompt.tokens) and not ends
        return length if differs else -1

    def _best(self, prompt: Prompt) -> tuple[int, Entry | None]:
        most = len(prompt.tokens) - 1
        if most < LEAST_TOKENS or not self._queue:
            return 0, None
        ids = _ids_of(prompt, most)
        length, entry = 0, None
        for tree in self._trees(prompt.owner):
            here, one = self._longest(tree, ids)
            if here > length:
                length, entry = here, one
        return (length, entry) if length >= LEAST_TOKENS else (0, None)

    def _longest(self, tree: Index[Entry], ids: bytes) -> tuple[int, Entry | None]:
        if self.trimmable:
            match = tree.match(ids)
            return match.length, match.value
        entry = tree.longest(ids)
        return (0 if entry is None else entry.length), entry

    def _trees(self, owner: str) -> tuple[Index[Entry], ...]:
        own = self._own.get(owner)
        return (self._public,) if own is None else (own, self._public)

    # -- keeping

    def keep(self, prompt: Prompt, length: int, caches: list[Any], kind: Kind) -> None:
        self.adopt(_ids_of(prompt, length), caches, kind, prompt.owner, prompt.shared)

    def adopt(
        self, ids: bytes, caches: list[Any], kind: Kind, owner: str, shared: int
    ) -> Entry | None:
        """As `keep`, by packed tokens. Returns what holds them now; None: there is no room."""
        length = len(ids) // TOKEN_BYTES
        if length < LEAST_TOKENS or not self.limit or not snapshot.holds(caches, length):
            return None
        public = length <= shared
        if kind == "system" and not public:
            kind = "turn"
        if (known := self._containing(ids, owner, public=public)) is not None:
            if known.length == length and kind == "system":
                known.kind = kind
            self._use(known)
            return known
        return self._file(Entry(ids, caches, kind, owner, public, self._clock()), shared)

    @property
    def keeps(self) -> bool:
        return self.limit > 0

    def shrink(self, nbytes: int) -> None:
        """Keep no more than so many bytes from now on."""
        self.limit = nbytes
        self._fit()

    def free(self, nbytes: int) -> None:
        self._fit(most=self.nbytes - nbytes)

    def rule(self, keeps: Callable[[Entry], bool]) -> None:
        """Another rule of what leaves last."""
        self._keeps = keeps
        self._queue.again(keeps)

    def clear(self) -> None:
        """Forget all, without a word."""
        self._queue = Queue()
        self._public, self._own = Index(), {}
        self._held, self._ids_bytes = _Held(), 0
        self._unmade = set()

    def _containing(self, ids: bytes, owner: str, *, public: bool) -> Entry | None:
        """An entry that serves whoever this would."""
        trees = (self._public,) if public else self._trees(owner)
        for tree in trees:
            length, entry = self._longest(tree, ids)
            if length * TOKEN_BYTES == len(ids):
                return entry
        return None

    def _file(self, entry: Entry, shared: int) -> Entry | None:
        """Room is made before anything is copied. What the caches were made of is not held on to:
        they are begun here and now; what is computed behind them waits for them, and the thread
        does not.
        """
        entry.caches = snapshot.taken(entry.caches)
        if sum(array.nbytes for array in snapshot.arrays_of(entry.caches)) > self.limit:
            return None
        beginnings = self._beginnings(entry)
        self._enter(entry)
        for one in beginnings:
            self._put_on(entry, one)
        for one in beginnings:
            if self._is_superseded(one, entry):
                self._leave(one)
        more = self._share(entry, shared)
        self._unmade.add(entry)
        self._fit([entry, *more])
        return entry if entry in self._queue else None

    def _share(self, entry: Entry, shared: int) -> list[Entry]:
        """What everybody may share of it is an entry of its own, with the same arrays; where that
        is new, it is returned.
        """
        if not self.trimmable or entry.public or shared < LEAST_TOKENS:
            return []
        ids = entry.ids[: shared * TOKEN_BYTES]
        if (known := self._containing(ids, entry.owner, public=True)) is not None:
            self._use(known)
            return []
        caches = snapshot.part_of(entry.caches, shared)
        part = Entry(ids, caches, "system", entry.owner, True, entry.used)
        self._enter(part)
        return [part]

    def _beginnings(self, entry: Entry) -> list[Entry]:
        """Those that it begins with, of what it might serve in place of."""
        each = [one for tree in self._trees(entry.owner) for one in tree.within(entry.ids)]
        return [one for one in each if one is not entry and one.length < entry.length]

    def _is_superseded(self, one: Entry, longer: Entry) -> bool:
        spared = one.kept or one.kind == "system" or one.public > longer.public
        return self.trimmable and not spared

    def _use(self, entry: Entry) -> None:
        """What it begins with is of use to more prompts, and is taken for used later."""
        now = self._clock()
        for one in (entry, *reversed(self._beginnings(entry))):
            one.used = now
            self._queue.last(one)

    # -- in and out

    def _enter(self, entry: Entry) -> None:
        entry.kept = self._keeps(entry)
        self._tree_of(entry).put(entry.ids, entry)
        self._held.add(snapshot.arrays_of(entry.caches))
        self._ids_bytes += len(entry.ids)
        self._queue.last(entry)
        self._use(entry)

    def _leave(self, entry: Entry) -> None:
        """Those that rested on its arrays get some of their own, or these would be held on to."""
        self._queue.leave(entry)
        self._unmade.discard(entry)
        tree = self._tree_of(entry)
        tree.remove(entry.ids)
        if not tree and not entry.public:
            del self._own[entry.owner]
        self._ids_bytes -= len(entry.ids)
        resting = [
            one for one in self._beginnings(entry) if snapshot.rests_on(entry.caches, one.caches)
        ]
        self._held.remove(snapshot.arrays_of(entry.caches))
        if resting and snapshot.is_its_own(entry.caches, entry.length):
            self._set_apart(resting)

    def _set_apart(self, entries: list[Entry]) -> None:
        """The longest of them carries the others from now on."""
        longest = max(entries, key=lambda one: one.length)
        self._held.remove(snapshot.arrays_of(longest.caches))
        snapshot.stand_alone(longest.caches)
        self._held.add(snapshot.arrays_of(longest.caches))
        for one in entries:
            if one is not longest:
                self._put_on(longest, one)
        self._unmade.add(longest)

    def _put_on(self, longer: Entry, one: Entry) -> None:
        self._held.remove(snapshot.arrays_of(one.caches))
        snapshot.rest_on(longer.caches, one.caches)
        self._held.add(snapshot.arrays_of(one.caches))

    def _tree_of(self, entry: Entry) -> Index[Entry]:
        if entry.public:
            return self._public
        return self._own.setdefault(entry.owner, Index())

    def _fit(self, new: Sequence[Entry] = (), most: int | None = None) -> None:
        """Evict; for the sake of a new one none that is to be kept, but that one itself, and then
        what came with it. `most`: bytes; None: the limit.
        """
        most = self.limit if most is None else most
        while self.nbytes > most and self._queue:
            newest = next((one for one in new if one in self._queue), None)
            entry = self._queue.first(newest)
            if entry is not None:
                self.on_evict(entry)
                self._leave(entry)
            elif newest is not None:
                self._leave(newest)
        unmade = [entry.caches for entry in self._unmade]
        self._unmade.clear()
        made = [array for caches in unmade for array in snapshot.arrays_of(caches)]
        mx.async_eval(made)  # type: ignore[no-untyped-call]


class _Held:
    """Counts the bytes of arrays, each once, however many entries have it."""

    def __init__(self) -> None:
        self.nbytes = 0
        self._times: dict[int, int] = {}

    def add(self, arrays: Sequence[mx.array]) -> None:
        for array in arrays:
            times = self._times.get(id(array), 0)
            if not times:
                self.nbytes += array.nbytes
            self._times[id(array)] = times + 1

    def remove(self, arrays: Sequence[mx.array]) -> None:
        for array in arrays:
            times = self._times.pop(id(array)) - 1
            if times:
                self._times[id(array)] = times
            else:
                self.nbytes -= array.nbytes


def _ids_of(prompt: Prompt, length: int) -> bytes:
    """Its first `length` tokens, packed."""
    size = length * TOKEN_BYTES
    known = len(prompt.ids) // TOKEN_BYTES
    if known >= length:
        return prompt.ids[:size]
    return prompt.ids + packed(prompt.tokens[known:length])
