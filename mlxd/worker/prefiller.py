"""Reads prompts, a chunk at a time, and hands over those that are through.

A prompt that is read alone has the caches of one sequence, as `generate_step` has them: to keep
them for later costs nothing. Those that share a chunk are merged for it, and read to their ends.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
from mlx_lm.generate import PromptProcessingBatch, StopSequences
from mlx_lm.models.cache import BatchKVCache, KVCache, make_prompt_cache

from mlxd.core.footprint import chunk_tokens
from mlxd.worker.batch import Batch
from mlxd.worker.engine import Kind, Prefixes, Prompt, Reuse
from mlxd.worker.pace import Pace
from mlxd.worker.prefill import Chunk, Unread, next_chunk
from mlxd.worker.sampling import greedy
from mlxd.worker.tuning import Tuned
from mlxd.worker.waits import LEAST_SHARED, Waits

LEAST_KEPT = 32
"""Tokens that must have been read since caches were last kept, to keep them again: fewer are read
as soon as found."""
_FIRST, _SHORTEST = 16, 16
"""Waiting prompts among which the next chunk is chosen: so many that came first, and of the others
so many that have least to read.
"""


@dataclass(slots=True, eq=False)
class _Row(Unread):
    """One prompt that is read, or will be."""

    prompt: Prompt = field(kw_only=True)
    caches: list[Any] = field(default_factory=list)
    """Of this sequence alone, once it has begun."""
    found: int = 0
    kept: int = 0
    """Up to where its caches were kept last, or came from."""
    known: int = -1
    """The number of the look at what is kept by which `read` is what would be found."""

    def next_tokens(self, width: int) -> list[int]:
        return self.prompt.tokens[self.read : self.read + min(width, self.left)]

    def advance(self, tokens: int) -> None:
        self.read += tokens
        self.left -= tokens


@dataclass(slots=True)
class Read:
    """What one chunk has done."""

    tokens: int = 0
    """That the model has seen, padding included."""
    length: int = 0
    """Of the longest of the prompts, then."""
    started: list[int] = field(default_factory=list)
    reused: list[Reuse] = field(default_factory=list)
    batch: Batch | None = None
    """Those that are through, if any are."""


class Prefiller:
    """All prompts that are not read to their ends, in order of arrival."""

    def __init__(
        self,
        model: Any,
        stop_tokens: Iterable[int],
        pace: Pace,
        tuned: Tuned,
        prefixes: Prefixes | None,
        *,
        padded: bool,
    ) -> None:
        self._model = model
        self._stops = StopSequences([(token,) for token in stop_tokens])
        self._pace = pace
        self._tuned = tuned
        self._prefixes = prefixes
        self._padded = padded
        self._rows: dict[int, _Row] = {}
        self._waits = Waits(trimmable=prefixes is not None and prefixes.trimmable)
        self._read_through: list[tuple[Prompt, list[Any]]] = []
        """Prompts that are to be kept, with the caches of all but their last tokens."""
        self._kept = 0
        """How often something was kept: what is found may be another then."""
        self._patient_are_due = False

    @property
    def _store(self) -> Prefixes | None:
        """Where nothing is kept, nobody looks for it, nor waits."""
        prefixes = self._prefixes
        return prefixes if prefixes is not None and prefixes.keeps else None

    def __contains__(self, uid: int) -> bool:
        return uid in self._rows

    @property
    def begun(self) -> int:
        """How many hold caches."""
        return sum(row.begun for row in self._rows.values())

    def add(self, uid: int, prompt: Prompt) -> None:
        left = len(prompt.tokens) - 1
        self._rows[uid] = _Row(uid, 0, left, left, prompt=prompt)

    def remove(self, uid: int) -> None:
        """What was read of it is kept, if it is much: it may be asked for again."""
        row = self._rows.get(uid)
        if row is None:
            return
        if row.begun and row.read - row.found >= LEAST_SHARED:
            self._keep(row, "partial")
        self._leave(row, read=False)

    def settle(self) -> None:
        """Keep the prompts that are read, once their first tokens are out: it may take its time.
        Whoever waits for that is not looked at before.
        """
        prompts, self._read_through = self._read_through, []
        for prompt, caches in prompts:
            if self._store is not None:
                self._store.keep(prompt, len(prompt.tokens) - 1, caches, "prompt")
                self._kept += 1

    def read(self, room: int, *, decoding: bool) -> Read | None:
        """The next chunk; None: there is none. `room`: how many may begin."""
        self.settle()
        if not self._rows or (room <= 0 and not self.begun):
            return None
        chosen = self._choose(room, decoding=decoding)
        if chosen is None:
            return None
        chunk, done = chosen
        self._patient_are_due = chunk.short and not self._patient_are_due
        rows = [row for row in chunk.rows if isinstance(row, _Row)]
        if len(rows) == 1:
            self._read_one(rows[0], chunk.width, done)
        else:
            self._read_several(rows, chunk.width, done)
        return done

    # -- who, and how much

    def _choose(self, room: int, *, decoding: bool) -> tuple[Chunk, Read] | None:
        """Decided again where less is found than there seemed to be."""
        size = self._sizes(decoding=decoding)
        midway = self._sizes(decoding=decoding, midway=True)
        done = Read()
        while True:
            chunk = next_chunk(
                self._able(size),
                size,
                room,
                patient_are_due=self._patient_are_due,
                midway=midway,
                padded=self._padded,
            )
            if chunk is None:
                return None
            fresh = [row for row in chunk.rows if isinstance(row, _Row) and not row.begun]
            as_seen = [self._begin(row, done) for row in fresh]
            room -= len(fresh)
            if all(as_seen):
                return chunk, done

    def _sizes(self, *, decoding: bool, midway: bool = False) -> Callable[[int, int], int]:
        """A chunk has never more tokens than `chunk_tokens`, by which memory is foreseen. It is a
        part of one that goes by that alone, or half as long: so it takes no more than that one.
        """
        most_of_all = self._tuned.now.max_tokens

        def size(rows: int, read: int) -> int:
            cell = chunk_tokens(rows, decoding=decoding)
            left = max(cell - read % cell, cell // 2)
            if most_of_all:
                left = min(left, most_of_all // rows)
            paced = self._pace.tokens(rows, read, decoding=decoding, midway=midway)
            return max(1, min(left, paced))

        return size

    def _able(self, size: Callable[[int, int], int]) -> Sequence[Unread]:
        """Those that wait for no other, in order of arrival; each knows how far it may be read."""
        rows = self._near()
        prefixes = self._store
        if prefixes is None:
            for row in rows:
                row.stop = row.left
            return rows
        for row in rows:
            self._waits.add(row.uid, row.prompt)
            self._look(row, prefixes)

        def turn(row: _Row) -> tuple[bool, bool, int]:
            return not row.begun, row.left > size(1, row.read), row.left

        before: dict[int, int] = {}
        free: set[int] = set()
        for row in sorted(rows, key=turn):
            if row.begun or self._may_read(row, before, prefixes):
                free.add(row.uid)
            before[row.uid] = row.read if row.begun else 0
        for row in rows:
            row.stop = self._stop(row, prefixes)
        return [row for row in rows if row.uid in free]

    def _near(self) -> list[_Row]:
        """Those that may be next, in order of arrival."""
        rows = list(self._rows.values())
        if len(rows) <= _FIRST + _SHORTEST:
            return rows
        others = sorted(rows[_FIRST:], key=lambda row: (not row.begun, row.left))
        return rows[:_FIRST] + sorted(others[:_SHORTEST], key=lambda row: row.uid)

    def _may_read(self, row: _Row, before: dict[int, int], prefixes: Prefixes) -> bool:
        """What somebody ahead has read of it already is kept for it at once."""
        if self._waits.lets(row.uid, before, lambda: self._look(row, prefixes)):
            return True
        uid, end = self._waits.awaits(row.uid)
        if before[uid] < end:
            return False
        ahead = self._rows[uid]
        if ahead.kept < end:
            self._keep(ahead, "partial")
        return self._waits.lets(row.uid, before, lambda: self._look(row, prefixes))

    def _look(self, row: _Row, prefixes: Prefixes) -> int:
        """How much of it is kept, as of now."""
        if not row.begun and row.known != self._kept:
            end, row.known = row.end, self._kept
            row.read = prefixes.reach(row.prompt)
            row.left = end - row.read
        return row.read

    def _stop(self, row: _Row, prefixes: Prefixes) -> int:
        """Caches that cannot be trimmed are kept where other prompts may part from this one."""
        if prefixes.trimmable:
            return row.left
        awaited = [end for end in self._waits.awaited(row.uid) if end > row.read]
        turns = [end for end in row.prompt.boundaries if end >= row.kept + LEAST_KEPT]
        ends = [end for end in (*awaited, *turns) if row.read < end < row.end]
        return min(ends, default=row.end) - row.read

    # -- to begin

    def _begin(self, row: _Row, done: Read) -> bool:
        """Whether as much is found as there seemed to be."""
        seen, end = row.read, row.end
        found = self._store.find(row.prompt) if self._store is not None else None
        row.read = row.found = row.kept = found.length if found is not None else 0
        row.left = end - row.read
        row.stop = min(row.stop, row.left) if row.read == seen else row.left
        row.caches = found.caches if found is not None else make_prompt_cache(self._model)
        row.begun = True
        done.started.append(row.uid)
        if self._store is not None:
            missed = self._store.missed(row.prompt)
            done.reused.append(Reuse(row.uid, row.found, missed))
        return row.read == seen

    # -- to read

    def _read_one(self, row: _Row, width: int, done: Read) -> None:
        tokens = row.next_tokens(width)
        if tokens:
            self._model(mx.array(tokens)[None], cache=row.caches)
            mx.eval([cache.state for cache in row.caches])
            mx.clear_cache()
        row.advance(len(tokens))
        done.tokens, done.length = len(tokens), row.read
        if row.left:
            self._keep_midway(row)
            return
        if self._is_worth(row):
            self._read_through.append((row.prompt, copy.deepcopy(row.caches)))
        self._start(self._batch([row]), [row], done)

    def _read_several(self, rows: list[_Row], width: int, done: Read) -> None:
        done.length = max(row.read for row in rows) + width
        batch = self._batch(rows)
        if width:
            batch.prompt([row.next_tokens(width) for row in rows])
        done.tokens = len(rows) * width
        for n, row in enumerate(rows):
            row.advance(row.left)
            if self._is_worth(row):
                self._read_through.append((row.prompt, _extracted(batch, n)))
        self._start(batch, rows, done)

    def _batch(self, rows: Sequence[_Row]) -> Any:
        """Takes over their caches."""
        alone = len(rows) == 1
        batch = PromptProcessingBatch(
            self._model,
            [row.uid for row in rows],
            [] if alone else [row.caches for row in rows],
            tokens=[row.prompt.tokens[: row.read] for row in rows],
            samplers=[row.prompt.sampler for row in rows],
            fallback_sampler=greedy,
            logits_processors=[list(row.prompt.processors) for row in rows],
            stop_sequences=[self._stops] * len(rows),
            max_tokens=[row.prompt.max_tokens for row in rows],
        )
        if alone:
            batch.prompt_cache = [_batched(cache) for cache in rows[0].caches]
        for row in rows:
            row.caches = []
        return batch

    def _start(self, batch: Any, rows: Sequence[_Row], done: Read) -> None:
        done.batch = Batch.of(batch, [row.prompt.tokens[-1] for row in rows])
        for row in rows:
            self._leave(row, read=True)

    def _leave(self, row: _Row, *, read: bool) -> None:
        del self._rows[row.uid]
        self._waits.leave(row.uid, read=read)

    # -- to keep

    def _keep_midway(self, row: _Row) -> None:
        """Where others wait for it, and where they may part from it."""
        if self._store is None:
            return
        awaited = any(row.kept < end <= row.read for end in self._waits.awaited(row.uid))
        boundaries = row.prompt.boundaries
        if not self._store.trimmable and row.read in boundaries:
            self._keep(row, "system" if row.read == boundaries[0] else "turn")
        elif awaited:
            self._keep(row, "partial")

    def _is_worth(self, row: _Row) -> bool:
        """At the end of a prompt: whether more was read than there was."""
        if self._store is None:
            return False
        return row.read - row.kept >= (LEAST_KEPT if self._store.trimmable else 1)

    def _keep(self, row: _Row, kind: Kind) -> None:
        """A copy of what it has: arrays are shared until one side writes."""
        if self._store is None:
            return
        row.kept = row.read
        self._kept += 1
        self._store.keep(row.prompt, row.read, copy.deepcopy(row.caches), kind)


def _batched(cache: Any) -> Any:
    """For one sequence. Keys and values stay where they are, until they are written to beside what
    is kept of them: to copy them takes as long as a step at a length of some thousands, and as much
    memory once more.
    """
    if type(cache) is not KVCache or cache.empty():
        return cache.merge([cache])
    batched = BatchKVCache([0])
    batched.keys, batched.values = cache.keys, cache.values
    batched.offset, batched._idx = mx.array([cache.offset]), cache.offset
    return batched


def _extracted(batch: Any, n: int) -> list[Any]:
    """The caches of one row, computed: else they would hold those of all rows."""
    caches: list[Any] = batch.extract_cache(n)
    mx.async_eval([cache.state for cache in caches])  # type: ignore[no-untyped-call]
    return caches
