"""The memory budget of one engine: who may join its batch, who waits, who has grown too long.

Pure: told of sequences, lengths and budgets, it says what is to be done. A sequence is admitted
when the batch with it is predicted to stay within the budget, at the length that is reserved for
it; what does not fit waits in order of arrival, and nobody overtakes. A reservation grows in
steps; a sequence that has used up its own and cannot grow ends there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from mlxd.core.footprint import PREFILL_APART, Footprint
from mlxd.core.grouping import UNBOUNDED
from mlxd.core.sizes import spoken
from mlxd.ipc.messages import Budget, Need, Refused
from mlxd.worker.worth import MOST

GROWTH_MARGIN = 192
"""Tokens before the end of its reservation at which a sequence asks for more: some seconds of
decoding, in which another model may be evicted for it."""
LEAST_GROWTH = 256
"""More than the margin: what has just grown need not ask at once."""
GRANT_SECONDS = 2.0
"""How long after its `Need` a sequence at the end of its reservation keeps the others standing."""
ANSWER_SECONDS = 10.0
"""How long the answer to a `Need` keeps those from being refused who no longer wait."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What one request asks of memory."""

    id: int
    prompt: int
    """Its tokens."""
    max_tokens: int
    expected_output: int
    """Tokens of the answer to reserve at first."""
    until: float
    """When it stops waiting; in the past for one that does not wait at all."""
    patient: bool = True
    """Whether it was to wait at all."""
    spares: bool = False
    """Nobody is to give memory up for it."""
    apart: bool = False
    """Its prompt is read outside the batch: beside that, whatever rows it has."""

    @property
    def enters(self) -> bool:
        """Whether it comes into the batch at all."""
        return not self.apart or self.max_tokens > 0

    @property
    def longest(self) -> int:
        return self.prompt + self.max_tokens

    @property
    def reserved(self) -> int:
        """At first; never so little that it could not ask for more in time."""
        return self.prompt + min(self.max_tokens, max(self.expected_output, LEAST_GROWTH))

    @property
    def growth(self) -> int:
        return max(LEAST_GROWTH, self.expected_output // 4)


@dataclass(slots=True)
class Verdict:
    """What is to be done now, in order."""

    admit: list[int] = field(default_factory=list)
    say: list[Need | Refused] = field(default_factory=list)


class _Stage(Enum):
    QUEUED = auto()
    """In the engine, without a cache."""
    JOINING = auto()
    """Its prompt is being read."""
    DECODING = auto()


@dataclass(slots=True)
class _Share:
    """One sequence in the engine."""

    claim: Claim
    reserved: int
    used: int
    stage: _Stage = _Stage.QUEUED

    @property
    def may_grow(self) -> bool:
        return self.reserved < self.claim.longest

    @property
    def grown(self) -> int:
        return min(self.claim.longest, self.reserved + self.claim.growth)


@dataclass(slots=True)
class _Asked:
    """A `Need` that was sent."""

    bytes: int
    at: float
    answered: bool = False


class Ledger:
    """Keeps account of one engine's sequences. Times are of one monotonic clock."""

    def __init__(
        self,
        footprint: Footprint,
        rows: int,
        budget: Budget | None = None,
        kept: Callable[[], int] = lambda: 0,
    ) -> None:
        """`rows`: the most sequences that hold a cache at one time. `kept`: bytes of beginnings of
        prompts that are kept; these are nobody's here.
        """
        self._footprint = footprint
        self._kept = kept
        self._rows = rows
        self._step_tokens = 1 + MOST if footprint.draft else 1
        """That a sequence may have in one step."""
        self._budget = budget or Budget(0, 0, 0)
        self._waiting: dict[int, Claim] = {}
        self._shares: dict[int, _Share] = {}
        self._growing: dict[int, None] = {}
        """Those near the end of their reservation, in the order in which they came there."""
        self._last_grown: int | None = None
        self._asked: dict[int, _Asked] = {}
        self._overdrawn = False
        """The budget was set; it may have been lowered below what already runs."""
        self._changed = True
        self._look_at = 0.0
        self._largest = Largest()
        self._half_read = False
        self._in_it: int | None = None
        """What `_reserved` says of those in the engine; None: it is to be asked again."""
        self._rows_room: int | None = None

    # -- what happens

    def ask(self, claim: Claim) -> None:
        """A request comes."""
        self._waiting[claim.id] = claim
        self._changed = True

    def withdraw(self, id: int) -> bool:
        """A request leaves before it was admitted; False: it does not wait here."""
        if self._waiting.pop(id, None) is None:
            return False
        self._asked.pop(id, None)
        self._changed = True
        return True

    def set_budget(self, budget: Budget) -> None:
        """What runs goes on, whatever it is lowered to. Who was given what he asked for may ask for
        more, where another takes it first.
        """
        asked = self._asked.get(budget.answers)
        if asked is not None and asked.bytes <= budget.bytes:
            del self._asked[budget.answers]
        elif asked is not None:
            asked.answered = True
        self._budget = budget
        self._overdrawn = budget.bytes > 0 and not budget.answers
        self._changed, self._rows_room = True, None

    def started(self, ids: Iterable[int]) -> None:
        """The engine reads their prompts."""
        for id in ids:
            self._shares[id].stage = _Stage.JOINING

    def took(self, ids: Sequence[int]) -> set[int]:
        """Each has one more token; returns those that must end with it."""
        shares = [self._shares[id] for id in ids]
        if any(share.stage is not _Stage.DECODING for share in shares):
            self._note_peak()
            self._changed, self._in_it, self._rows_room = True, None, None
        over: set[int] = set()
        for share in shares:
            share.stage = _Stage.DECODING
            share.used += 1
            if share.used >= share.reserved - GROWTH_MARGIN and share.may_grow:
                self._near_the_end(share, over)
        return over

    def entered(self, id: int) -> None:
        """What was read apart is with the others from now on."""
        share = self._shares[id]
        share.claim, share.stage = replace(share.claim, apart=False), _Stage.QUEUED
        self._changed, self._in_it, self._rows_room = True, None, None

    def left(self, *ids: int) -> None:
        """These sequences are out of the engine, for whatever reason."""
        self._note_peak()
        for id in ids:
            share = self._shares.pop(id)
            self._half_read = self._half_read or share.stage is _Stage.JOINING
            self._asked.pop(id, None)
            self._growing.pop(id, None)
        self._changed, self._in_it, self._rows_room = True, None, None

    def again(self) -> None:
        """The engine was made anew, and reads all sequences again with their answers so far."""
        for share in self._shares.values():
            left = share.claim.longest - share.used
            share.claim = replace(share.claim, prompt=share.used, max_tokens=left)
            share.stage = _Stage.QUEUED
        self._half_read = True
        self._changed, self._in_it, self._rows_room = True, None, None

    # -- what is to be done

    @property
    def waits(self) -> bool:
        """Whether anybody waits to be admitted."""
        return bool(self._waiting)

    def decide(self, now: float) -> Verdict:
        """Grow who must, admit who may, refuse who has waited long enough."""
        verdict = Verdict()
        if not self._changed and now < self._look_at:
            return verdict
        self._changed = False
        self._protest(verdict, now)
        for id in list(self._growing):
            self._grow(self._shares[id], verdict, now)
        while self._waiting and self._settle_head(verdict, now):
            pass
        self._refuse_late(verdict, now)
        self._look_at = min(
            (self._patience(claim) for claim in self._waiting.values()), default=float("inf")
        )
        self._rows_room = None
        return verdict

    @property
    def allowance(self) -> int:
        """What the engine may hold: the budget, or what was once promised, and beginnings of
        prompts that are kept beside it; 0: no limit.
        """
        if not self._budget.bytes:
            return 0
        kept = min(self._kept(), self._budget.prefix_bytes)
        return max(self._budget.bytes, self._held()) + kept

    @property
    def rows_room(self) -> int:
        """What those that decode may take together, padding included."""
        if self._rows_room is None:
            self._rows_room = self._room_of_rows()
        return self._rows_room

    @property
    def stands_until(self) -> float:
        """No step before this time, or an answer: with it a sequence would have to end that may
        yet be granted more."""
        return max(map(self._stands_until, self._growing), default=0.0)

    def victim(self) -> int | None:
        """Whom to end when more is held than allowed: who grew last, else who came last."""
        if self._last_grown in self._shares:
            return self._last_grown
        return next(reversed(self._shares), None)

    def observed(self) -> Largest:
        """The largest batch since it was last asked for."""
        largest = Largest() if self._half_read else self._largest
        self._largest, self._half_read = Largest(), False
        return largest

    # -- waiting

    def _settle_head(self, verdict: Verdict, now: float) -> bool:
        """Whether the first of those who wait no longer does."""
        claim = next(iter(self._waiting.values()))
        if not self._budget.bytes:
            self._admit(claim, verdict)
            return True
        needed = self._reserved(claim)
        if needed <= self._budget.bytes:
            self._admit(claim, verdict)
            self._in_it = needed
            return True
        if self._need(claim.id, needed, verdict, now) or self._pending(claim.id, now):
            return False
        most = max(self._budget.most, self._budget.bytes)
        if self._budget.most and self._alone(claim) > most:
            self._refuse(claim, self._too_long(claim, most), verdict)
            return True
        if self._shares and now < claim.until:
            return False
        self._refuse(claim, self._no_room(claim, needed), verdict)
        return True

    def _admit(self, claim: Claim, verdict: Verdict) -> None:
        del self._waiting[claim.id]
        self._asked.pop(claim.id, None)
        self._shares[claim.id] = _Share(claim, claim.reserved, claim.prompt)
        self._in_it = None
        verdict.admit.append(claim.id)

    def _refuse_late(self, verdict: Verdict, now: float) -> None:
        """Those behind the first who wait no longer; they fall with it, not before."""
        if any(self._pending(id, now) for id in self._waiting):
            return
        ahead: list[Claim] = []
        for claim in list(self._waiting.values()):
            ahead.append(claim)
            if now >= claim.until:
                self._refuse(claim, self._no_room(claim, self._reserved(*ahead)), verdict)
                ahead.pop()

    def _refuse(self, claim: Claim, refused: Refused, verdict: Verdict) -> None:
        del self._waiting[claim.id]
        self._asked.pop(claim.id, None)
        verdict.say.append(refused)

    def _patience(self, claim: Claim) -> float:
        asked = self._asked.get(claim.id)
        pending = asked is not None and not asked.answered
        return max(claim.until, asked.at + ANSWER_SECONDS) if asked and pending else claim.until

    def _no_room(self, claim: Claim, needed: int) -> Refused:
        """`timeouts.generation` bounds the wait: what runs when it begins has ended by then."""
        available = self._budget.bytes
        first = next(iter(self._waiting)) == claim.id
        running = " beside what runs" if first else " beside what runs and waits before it"
        beside = running if self._shares else ""
        decided = None
        if self._shares:
            decided = "timeouts.generation" if claim.patient else "memory.reserve.when_full"
        return Refused(
            claim.id,
            "insufficient_memory",
            f"a prompt of {claim.prompt} tokens and its answer need {spoken(needed)} of memory"
            f"{beside}, and {spoken(available)} are available for this model",
            policy_key=decided,
            needed_bytes=needed,
            available_bytes=available,
        )

    def _too_long(self, claim: Claim, most: int) -> Refused:
        needed = self._alone(claim)
        longest = self._footprint.longest(most)
        return Refused(
            claim.id,
            "context_exceeded",
            f"{claim.prompt} prompt tokens and {claim.reserved - claim.prompt} for the answer need"
            f" {spoken(needed)} of memory, {spoken(most)} at most are available for this model:"
            f" prompt and answer of {longest} tokens together would fit",
            param="messages",
            needed_bytes=needed,
            available_bytes=most,
            numbers={"prompt_tokens": claim.prompt, "fitting_tokens": longest},
        )

    # -- asking

    def _need(self, id: int, needed: int, verdict: Verdict, now: float) -> bool:
        """Ask once for so much; and again, when less will do.

        For more than `Budget.most`, too: that is as old as the budget.
        """
        asked = self._asked.get(id)
        if asked is not None and needed >= asked.bytes:
            return False
        self._asked[id] = _Asked(needed, now)
        claim = self._waiting.get(id)
        spares = claim is not None and claim.spares
        verdict.say.append(Need(id, needed, spares))
        return True

    def _pending(self, id: int, now: float) -> bool:
        """Whether an answer may still come."""
        asked = self._asked.get(id)
        if asked is None or asked.answered:
            return False
        claim = self._waiting.get(id)
        return now < max(asked.at + ANSWER_SECONDS, claim.until if claim is not None else 0.0)

    def _protest(self, verdict: Verdict, now: float) -> None:
        """Say once what already runs, when the budget has been lowered below it."""
        if self._overdrawn and self._shares and (needed := self._held()) > self._budget.bytes:
            id = next(reversed(self._shares))
            self._asked.pop(id, None)
            self._need(id, needed, verdict, now)
        self._overdrawn = False

    # -- growing

    def _near_the_end(self, share: _Share, over: set[int]) -> None:
        if share.claim.id not in self._growing:
            self._growing[share.claim.id] = None
            self._changed = True
        if share.used >= share.reserved:
            over.add(share.claim.id)

    def _stands_until(self, id: int) -> float:
        share, asked = self._shares[id], self._asked.get(id)
        at_its_end = share.may_grow and share.used + self._step_tokens >= share.reserved
        if not at_its_end or asked is None or asked.answered:
            return 0.0
        return asked.at + GRANT_SECONDS

    def _grow(self, share: _Share, verdict: Verdict, now: float) -> None:
        before, held = share.reserved, self._in_it
        share.reserved, self._in_it = share.grown, None
        if self._budget.bytes and (needed := self._held()) > self._budget.bytes:
            share.reserved, self._in_it = before, held
            self._need(share.claim.id, needed, verdict, now)
            return
        self._last_grown = share.claim.id
        self._asked.pop(share.claim.id, None)
        if share.used < share.reserved - GROWTH_MARGIN or not share.may_grow:
            self._growing.pop(share.claim.id)

    # -- arithmetic

    def _held(self) -> int:
        """What the engine is predicted to hold at most, as it is. Asked all the time."""
        if self._in_it is None:
            self._in_it = self._reserved()
        return self._in_it

    def _reserved(self, *more: Claim) -> int:
        """What the engine is predicted to hold at most, with `more` in it."""
        shares = self._shares.values()
        decoding = [s.reserved for s in shares if s.stage is _Stage.DECODING]
        new = [s for s in shares if s.stage is not _Stage.DECODING]
        joining = [(s.reserved, s.claim.prompt) for s in new if s.claim.enters]
        joining += [(claim.reserved, claim.prompt) for claim in more if claim.enters]
        return max(self._peak(decoding, joining), self._beside(more))

    def _beside(self, more: Sequence[Claim]) -> int:
        """The most while one prompt is read apart; 0 when none is. Others hold what they may hold
        meanwhile, and step between its chunks.
        """
        shares = self._shares.values()
        apart = [claim.prompt for claim in (*(s.claim for s in shares), *more) if claim.apart]
        if not apart:
            return 0
        prompt = max(apart)
        decoding = [s.reserved for s in shares if s.stage is _Stage.DECODING]
        others = [s for s in shares if s.stage is not _Stage.DECODING and not s.claim.apart]
        joining = [(s.reserved, s.claim.prompt) for s in others]
        joining += [(claim.reserved, claim.prompt) for claim in more if not claim.apart]
        rows = self._longest([*decoding, *(length for length, _ in joining)])
        chunk, footprint = PREFILL_APART, self._footprint
        read = footprint.peak_bytes([], [prompt], chunk)
        stepping = self._peak(decoding, joining) + footprint.cache_bytes([prompt])
        return max(stepping, footprint.held_bytes(rows) + read)

    def _room_of_rows(self) -> int:
        """With all that may be held beside them at its most."""
        if not self._budget.bytes:
            return UNBOUNDED
        shares = self._shares.values()
        new = [s for s in shares if s.stage is not _Stage.DECODING and s.claim.enters]
        apart = [s.claim.prompt for s in shares if s.claim.apart]
        beside = max(0, self._reading([(s.reserved, s.claim.prompt) for s in new]))
        if apart:
            beside += self._footprint.alone_bytes([max(apart)], PREFILL_APART)
        allowed = max(self._budget.bytes, self._held())
        return max(0, allowed - self._footprint.weights_bytes - beside)

    def _alone(self, claim: Claim) -> int:
        return self._peak([], [(claim.reserved, claim.prompt)])

    def _peak(self, decoding: list[int], joining: list[tuple[int, int]]) -> int:
        """The most over what may come: rows join and leave in any order, and prompts are read
        beside as many of the others as can be, or in larger chunks when these are gone.

        `joining`: what is reserved, and how much of it is prompt.
        """
        footprint = self._footprint
        rows = self._longest([*decoding, *(length for length, _ in joining)])
        decoded = footprint.weights_bytes + footprint.grouped_bytes(rows)
        if not joining:
            return decoded
        alone = footprint.alone_bytes(self._longest(prompt for _, prompt in joining))
        beside = footprint.held_bytes(rows) + self._reading(joining)
        return max(decoded, footprint.weights_bytes + max(alone, beside))

    def _reading(self, joining: list[tuple[int, int]]) -> int:
        """What is held while prompts are read, beyond what all hold between two steps."""
        lengths, prompts = [length for length, _ in joining], [prompt for _, prompt in joining]
        return self._footprint.reading_bytes(lengths, prompts)

    def _longest(self, lengths: Iterable[int]) -> list[int]:
        """Of as many as hold a cache at one time."""
        return sorted(lengths, reverse=True)[: self._rows]

    def _note_peak(self) -> None:
        """Compare the batch as it is with the largest so far."""
        shares = self._shares.values()
        decoding = [s.used for s in shares if s.stage is _Stage.DECODING]
        joining = [s.claim.prompt for s in shares if s.stage is _Stage.JOINING]
        if not decoding and not joining:
            return
        predicted = self._footprint.peak_bytes(decoding, joining, room=self.rows_room)
        if predicted >= self._largest.predicted_bytes:
            rows = len(decoding) + len(joining)
            self._largest = Largest(predicted, rows, max([*decoding, *joining]))


@dataclass(frozen=True, slots=True)
class Largest:
    """The largest batch of a busy time, as it really was; all 0 when nothing can be said."""

    predicted_bytes: int = 0
    rows: int = 0
    longest: int = 0
