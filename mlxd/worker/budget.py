"""The memory budget of one engine: who may join its batch, who waits, who has grown too long.

Pure: told of sequences, lengths and budgets, it says what is to be done. A sequence is admitted
when the batch with it is predicted to stay within the budget, at the length that is reserved for
it; what does not fit waits in order of arrival, and nobody overtakes. A reservation grows in
steps; a sequence that has used up its own and cannot grow ends there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from mlxd.core.footprint import Footprint
from mlxd.core.grouping import UNBOUNDED
from mlxd.ipc.messages import Budget, Need, Refused
from mlxd.worker.claim import Claim, Reservation, Stage
from mlxd.worker.memory_refusal import no_room, too_long
from mlxd.worker.prediction import Largest, Prediction
from mlxd.worker.worth import MOST

GROWTH_MARGIN = 192
"""Tokens before the end of its reservation at which a sequence asks for more: some seconds of
decoding, in which another model may be evicted for it."""
GRANT_SECONDS = 2.0
"""How long after its `Need` a sequence at the end of its reservation keeps the others standing."""
ANSWER_SECONDS = 10.0
"""How long the answer to a `Need` keeps those from being refused who no longer wait."""


@dataclass(slots=True)
class Verdict:
    """What is to be done now, in order."""

    admit: list[int] = field(default_factory=list)
    say: list[Need | Refused] = field(default_factory=list)


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
        self._prediction = Prediction(footprint, rows)
        self._longest = footprint.longest
        """Tokens that fit into so many bytes."""
        self._kept = kept
        self._step_tokens = 1 + MOST if footprint.draft else 1
        """That a sequence may have in one step."""
        self._budget = budget or Budget(0, 0, 0)
        self._waiting: dict[int, Claim] = {}
        self._reservations: dict[int, Reservation] = {}
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
            self._reservations[id].stage = Stage.JOINING

    def took(self, ids: Sequence[int]) -> set[int]:
        """Each has one more token; returns those that must end with it."""
        reservations = [self._reservations[id] for id in ids]
        if any(reservation.stage is not Stage.DECODING for reservation in reservations):
            self._note_peak()
            self._changed, self._in_it, self._rows_room = True, None, None
        over: set[int] = set()
        for reservation in reservations:
            reservation.stage = Stage.DECODING
            reservation.used += 1
            if reservation.used >= reservation.reserved - GROWTH_MARGIN and reservation.may_grow:
                self._near_the_end(reservation, over)
        return over

    def entered(self, id: int) -> None:
        """What was read apart is with the others from now on."""
        reservation = self._reservations[id]
        reservation.claim, reservation.stage = replace(reservation.claim, apart=False), Stage.QUEUED
        self._changed, self._in_it, self._rows_room = True, None, None

    def left(self, *ids: int) -> None:
        """These sequences are out of the engine, for whatever reason."""
        self._note_peak()
        for id in ids:
            reservation = self._reservations.pop(id)
            self._half_read = self._half_read or reservation.stage is Stage.JOINING
            self._asked.pop(id, None)
            self._growing.pop(id, None)
        self._changed, self._in_it, self._rows_room = True, None, None

    def again(self) -> None:
        """The engine was made anew, and reads all sequences again with their answers so far."""
        for reservation in self._reservations.values():
            left = reservation.claim.longest - reservation.used
            reservation.claim = replace(reservation.claim, prompt=reservation.used, max_tokens=left)
            reservation.stage = Stage.QUEUED
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
            self._grow(self._reservations[id], verdict, now)
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
        if self._last_grown in self._reservations:
            return self._last_grown
        return next(reversed(self._reservations), None)

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
        alone = self._prediction.alone(claim)
        if self._budget.most and alone > most:
            self._refuse(claim, too_long(claim, alone, most, self._longest(most)), verdict)
            return True
        if self._reservations and now < claim.until:
            return False
        self._refuse(claim, self._no_room(claim, needed), verdict)
        return True

    def _admit(self, claim: Claim, verdict: Verdict) -> None:
        del self._waiting[claim.id]
        self._asked.pop(claim.id, None)
        self._reservations[claim.id] = Reservation(claim, claim.reserved, claim.prompt)
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
        first = next(iter(self._waiting)) == claim.id
        available, others = self._budget.bytes, bool(self._reservations)
        return no_room(claim, needed, available, beside_others=others, first=first)

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
        if self._overdrawn and self._reservations and (needed := self._held()) > self._budget.bytes:
            id = next(reversed(self._reservations))
            self._asked.pop(id, None)
            self._need(id, needed, verdict, now)
        self._overdrawn = False

    # -- growing

    def _near_the_end(self, reservation: Reservation, over: set[int]) -> None:
        if reservation.claim.id not in self._growing:
            self._growing[reservation.claim.id] = None
            self._changed = True
        if reservation.used >= reservation.reserved:
            over.add(reservation.claim.id)

    def _stands_until(self, id: int) -> float:
        reservation, asked = self._reservations[id], self._asked.get(id)
        at_its_end = (
            reservation.may_grow and reservation.used + self._step_tokens >= reservation.reserved
        )
        if not at_its_end or asked is None or asked.answered:
            return 0.0
        return asked.at + GRANT_SECONDS

    def _grow(self, reservation: Reservation, verdict: Verdict, now: float) -> None:
        before, held = reservation.reserved, self._in_it
        reservation.reserved, self._in_it = reservation.grown, None
        if self._budget.bytes and (needed := self._held()) > self._budget.bytes:
            reservation.reserved, self._in_it = before, held
            self._need(reservation.claim.id, needed, verdict, now)
            return
        self._last_grown = reservation.claim.id
        self._asked.pop(reservation.claim.id, None)
        if reservation.used < reservation.reserved - GROWTH_MARGIN or not reservation.may_grow:
            self._growing.pop(reservation.claim.id)

    # -- what is held

    def _held(self) -> int:
        """What the engine is predicted to hold at most, as it is. Asked all the time."""
        if self._in_it is None:
            self._in_it = self._reserved()
        return self._in_it

    def _reserved(self, *more: Claim) -> int:
        """The same, with `more` in it."""
        return self._prediction.reserved(self._reservations.values(), more)

    def _room_of_rows(self) -> int:
        if not self._budget.bytes:
            return UNBOUNDED
        allowed = max(self._budget.bytes, self._held())
        return self._prediction.room_of_rows(self._reservations.values(), allowed)

    def _note_peak(self) -> None:
        """Compare the batch as it is with the largest so far."""
        batch = self._prediction.as_it_is(self._reservations.values(), self.rows_room)
        if batch.predicted_bytes >= self._largest.predicted_bytes:
            self._largest = batch
