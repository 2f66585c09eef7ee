"""Sequences that decode in several batches, so that a long one does not pad short ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

from mlxd.core.footprint import STEP_TOKENS, Footprint
from mlxd.core.grouping import UNBOUNDED, Place, regrouped
from mlxd.worker.batch import Batch
from mlxd.worker.engine import Constraint
from mlxd.worker.speculation import Speculation


class Groups:
    """Which sequences share a batch is looked at when some come, some leave, or one has grown so
    far that its caches do; and when there is room for less padding than there is.
    """

    def __init__(
        self,
        footprint: Footprint | None = None,
        room: Callable[[], int] = lambda: UNBOUNDED,
        speculation: Speculation | None = None,
    ) -> None:
        """`speculation`: drafts for a sequence that is alone.

        `room`: bytes that the sequences may take together; those that only fit without any
        padding are told apart as far as can be. Without a footprint all share one batch.
        """
        self.scored: set[int] = set()
        """Those of whose tokens log-probabilities are wanted, from before they join."""
        self.constraints: dict[int, Constraint] = {}
        self._fresh: set[int] = set()
        """Those without a token yet. While there are some, nobody changes batches unless they all
        wait for their next tokens to be begun: else their first ones would have to wait.
        """
        self._footprint = footprint
        self._room = room
        self._speculation = speculation
        self._last_room = UNBOUNDED
        self._batches: list[Batch] = []
        self._passes_left = 0
        """Until the caches of some sequence grow."""
        self._settled = True
        """Nobody has joined since it was looked at who shares a batch."""

    @property
    def under_way(self) -> bool:
        """Tokens are computed, or will be, whatever is computed next."""
        return not all(batch.is_told for batch in self._batches)

    def join(self, batch: Batch) -> None:
        """Take over those whose prompts are read. They share a batch with others at once, if those
        wait for their next tokens to be begun like these; else after the next step.
        """
        batch.scored, batch.constraints, batch.fresh = self.scored, self.constraints, self._fresh
        self._fresh.update(batch.uids)
        self._batches.append(batch)
        self._settled = False
        self._regroup()

    def step(self) -> list[Any]:
        """One token of each sequence; several of one that is alone and drafted for."""
        room, passes = self._room(), self._passes
        if room < self._last_room or self._passes_left < passes or not self._settled:
            self._regroup()
        self._last_room = room
        self._passes_left -= passes
        before = len(self)
        responses = self._next()
        if len(self) < before:
            self._left()
        return responses

    def _next(self) -> list[Any]:
        """All batches begin with their next tokens before any is waited for; those whose
        constraints take their time begin last.

        First tokens are told as soon as they are there, and everybody's with them: then nothing is
        under way, and who joins behind the next chunk shares a pass with all others at once.
        """
        in_turn = sorted(self._batches, key=self._constrained)
        if self._fresh:
            for batch in in_turn:
                batch.catch_up()
            return [response for batch in self._batches for response in batch.early()]
        if self._speculation is not None and len(self) == 1:
            [alone] = self._batches
            alone.catch_up()
            responses = self._speculation.next(alone)
            self._passes_left -= len(responses) - 1
            return responses
        for batch in in_turn:
            batch.begin()
        return [response for batch in self._batches for response in batch.next()]

    def extract(self, uid: int) -> tuple[list[Any], list[int]] | None:
        """A sequence's caches, by itself, and the tokens that they hold; None: it is not here, or
        has said nothing.
        """
        for batch in self._batches:
            if uid in batch.uids and uid not in self._fresh:
                row = batch.uids.index(uid)
                return batch.extract_cache(row), list(batch.tokens[row])
        return None

    def remove(self, uids: Iterable[int]) -> None:
        """Forget sequences; unknown ones are ignored."""
        gone = set(uids)
        self._fresh -= gone
        before = len(self)
        for batch in self._batches:
            keep = [row for row, uid in enumerate(batch.uids) if uid not in gone]
            if len(keep) < len(batch.uids):
                batch.filter(keep)
        if len(self) < before:
            self._left()

    def __len__(self) -> int:
        return sum(len(batch.uids) for batch in self._batches)

    @property
    def batches(self) -> Sequence[Batch]:
        return self._batches

    def _constrained(self, batch: Batch) -> bool:
        return any(uid in self.constraints for uid in batch.uids)

    def _left(self) -> None:
        self._batches = [batch for batch in self._batches if batch.uids]
        self._regroup()

    @property
    def _passes(self) -> int:
        """How many the next step begins: what is under way is one that it need not."""
        return 1 if self._fresh or self.under_way else 2

    def _regroup(self) -> None:
        """Either all batches are told, or none is: only such can be joined."""
        if self._fresh and self.under_way:
            return
        settled, self._settled = self._settled, True
        lengths = [batch.lengths for batch in self._batches]
        self._passes_left = min(
            (STEP_TOKENS - length % STEP_TOKENS for length in chain(*lengths)), default=0
        )
        if self._footprint is None:
            self._arrange([[(g, r) for g, rows in enumerate(lengths) for r in range(len(rows))]])
            return
        read, held, more = self._footprint.read_bytes, self._footprint.row_bytes, self._passes
        places = regrouped(
            [[read(length + more) for length in rows] for rows in lengths],
            self._footprint.pass_bytes,
            self._room(),
            held=[[held(length + more) for length in rows] for rows in lengths],
            settled=settled,
        )
        if places is not None:
            self._arrange(places)

    def _arrange(self, groups: Sequence[Sequence[Place]]) -> None:
        """Batches that stay together stay as they are; what is told apart is copied."""
        pieces: list[list[Batch]] = [[] for _ in groups]
        for g, batch in enumerate(self._batches):
            rows = [[row for of, row in group if of == g] for group in groups]
            targets = [target for target, part in enumerate(rows) if part]
            parts = [rows[target] for target in targets]
            divided = [batch] if len(parts) == 1 else batch.divide(parts)
            for target, piece in zip(targets, divided, strict=True):
                pieces[target].append(piece)
        self._batches = [_joined(parts) for parts in pieces if parts]


def _joined(parts: list[Batch]) -> Batch:
    first, *others = sorted(parts, key=len, reverse=True)
    for other in others:
        first.extend(other)
    return first
