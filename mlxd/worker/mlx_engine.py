"""The engine for models whose caches batch: mlx-lm's batches of prompts and of answers, but not its
`BatchGenerator`.

Three things differ from that. Sequences decode in batches of like lengths (groups.py). A step gives
tokens or reads a chunk of prompts, never both, and who is read, how much of it and how often is
decided here: so cancels are heard soon, and a long prompt holds up neither the running sequences
nor a short one behind it. And what was read once is not read again, where that is kept
(`Prefixes`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generation_stream

from mlxd.ipc.messages import packed
from mlxd.worker.engine import COMPLETION_BATCH, Prefixes, Prompt, Step
from mlxd.worker.groups import Groups
from mlxd.worker.machine import pace
from mlxd.worker.prefiller import LEAST_KEPT, Prefiller
from mlxd.worker.share import Share
from mlxd.worker.speculation import Speculation
from mlxd.worker.tuning import Tuned

CLEAR_EVERY = 512
"""Decode steps, after which buffers that are kept for reuse are freed."""


class MlxEngine:
    """Any number of sequences, joining and leaving the running batches."""

    def __init__(
        self,
        model: Any,
        stop_tokens: Iterable[int],
        *,
        padded: bool = True,
        batches: Groups | None = None,
        prefixes: Prefixes | None = None,
        tuned: Tuned | None = None,
        speculation: Speculation | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`padded`: prompts of unlike lengths may be read together."""
        tuned = tuned or Tuned()
        self._clock = clock
        self._speculation = speculation
        self._pace = pace(tuned)
        self._share = Share(tuned)
        self._prefixes = prefixes
        self._unread = Prefiller(model, stop_tokens, self._pace, tuned, prefixes, padded=padded)
        self._batches = Groups(speculation=speculation) if batches is None else batches
        self._prompts: dict[int, Prompt] = {}
        """Of all in it."""
        self._next_uid = 0
        self._steps = 0
        self._decoded_at: float | None = None
        """When the last step began, if it gave tokens."""

    def insert(self, prompts: Sequence[Prompt]) -> list[int]:
        if any(not prompt.tokens for prompt in prompts):
            raise ValueError("a sequence has an empty prompt")
        if any(prompt.max_tokens <= 0 for prompt in prompts):
            raise ValueError("a sequence's max_tokens must be > 0")
        uids = list(range(self._next_uid, self._next_uid + len(prompts)))
        self._next_uid += len(prompts)
        for uid, prompt in zip(uids, prompts, strict=True):
            self._prompts[uid] = prompt
            self._unread.add(uid, prompt)
            if prompt.scored:
                self._batches.scored.add(uid)
            if prompt.constraint is not None:
                self._batches.constraints[uid] = prompt.constraint
        return uids

    def remove(self, uids: Sequence[int]) -> None:
        uids = [uid for uid in uids if uid in self._prompts]
        if not uids:  # they have ended by themselves
            return
        with mx.stream(generation_stream):
            self._unread.settle()
            for uid in uids:
                self._unread.remove(uid)
                self._keep_so_far(uid)
            self._batches.remove(uids)
        self._forget(uids)

    def step(self) -> Step:
        before, self._decoded_at = self._decoded_at, None
        with mx.stream(generation_stream):
            if before is not None:
                self._unread.settle()
            now = self._clock()
            if before is not None:
                self._share.passed(now - before)
            decoding = len(self._batches) > 0
            if not decoding or not self._share.is_due:
                read = self._read(now, decoding=decoding)
                if read is not None or not decoding:
                    return read or Step([], [])
            return self._decode(now, steady=before is not None)

    def __len__(self) -> int:
        return len(self._prompts)

    def _read(self, now: float, *, decoding: bool) -> Step | None:
        """A chunk of prompts, if there is one to be read."""
        beside = self._batches.under_way
        room = COMPLETION_BATCH - len(self._batches) - self._unread.begun
        read = self._unread.read(room, decoding=decoding)
        if read is None:
            return None
        seconds = self._clock() - now
        midway = decoding and read.batch is None
        self._pace.prefilled(read.tokens, seconds, beside=beside, length=read.length, midway=midway)
        self._share.read(seconds, decoding=decoding)
        if read.batch is not None:
            self._batches.join(read.batch)
        return Step([], read.started, read.reused)

    def _decode(self, now: float, *, steady: bool) -> Step:
        """`steady`: behind another step that did."""
        steady = steady and self._batches.under_way  # else it begins one more
        tokens = self._batches.step()
        self._share.decoded()
        if steady:
            self._pace.decoded(self._clock() - now)
        self._decoded_at = now
        self._steps += 1
        if self._steps % CLEAR_EVERY == 0:
            mx.clear_cache()
        ended = [token for token in tokens if token.finish_reason is not None]
        if ended:
            self._unread.settle()
        for token in ended:
            self._keep_answer(token.uid, token.prompt_cache, token.all_tokens)
        self._forget([token.uid for token in ended])
        drafts = self._speculation.told() if self._speculation is not None else ()
        return Step(tokens, [], drafts=drafts)

    @property
    def _keeps(self) -> bool:
        return self._prefixes is not None and self._prefixes.keeps

    def _keep_so_far(self, uid: int) -> None:
        """An answer that is ended from outside: it is gone on from like any other."""
        if self._keeps and (held := self._batches.extract(uid)) is not None:
            self._keep_answer(uid, *held)

    def _keep_answer(self, uid: int, caches: list[Any], tokens: list[int]) -> None:
        if self._prefixes is None or not self._keeps or len(tokens) < LEAST_KEPT:
            return
        prompt = self._prompts[uid]
        ids = prompt.ids + packed(tokens[len(prompt.tokens) :]) if prompt.ids else b""
        whole = replace(prompt, tokens=tokens, ids=ids)
        self._prefixes.keep(whole, len(tokens), caches, "answer")

    def _forget(self, uids: Sequence[int]) -> None:
        if self._speculation is not None:
            self._speculation.forget(uids)
        for uid in uids:
            del self._prompts[uid]
            self._batches.scored.discard(uid)
            self._batches.constraints.pop(uid, None)
