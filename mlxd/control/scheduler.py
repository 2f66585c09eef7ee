"""Who runs now, who waits, and who is refused: decided here, performed by others.

Told the time, it tells none, logs nothing and wakes nobody. What it refuses it raises.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Mapping
from copy import copy

from mlxd.control.adaptive import Adaptive
from mlxd.control.applicant import Applicant
from mlxd.control.holds import Holds
from mlxd.control.lines import Lines
from mlxd.control.place import Place
from mlxd.control.quotas import Quotas
from mlxd.control.rates import Counted, Rates, WouldDeny
from mlxd.control.shedding import Shedding
from mlxd.control.slots import Full, Scene, Slots
from mlxd.core.caller import PRIORITIES, Priority
from mlxd.core.errors import (
    MlxdError,
    Overloaded,
    PolicyLine,
    QueueFull,
    QueueTimeout,
    TenantBusy,
    TokensExhausted,
)
from mlxd.policy.policy_set import PolicySet

__all__ = ["Place", "Scene", "Scheduler"]

LEAST_RETRY, MOST_RETRY = 1.0, 30.0
"""Seconds."""


class Scheduler:
    """Slots, and the queue in front of them.

    Limits, bounds and weights are those in force (`apply`), also for what came before them; rates,
    quotas and deadlines are those of the policies that a request came with. Whenever something
    changed that may let somebody in (`leave`, `loaded`, `apply`, what is measured), ask `turn`.
    """

    def __init__(self, policies: PolicySet, scene: Scene, rates: Rates, quotas: Quotas) -> None:
        self.adaptive = Adaptive(policies)
        self.shedding = Shedding(self.adaptive)
        self.shut: MlxdError | None = None
        """While it is set, whoever asks is refused with it."""
        self._policies = policies
        self._scene = scene
        self._rates = rates
        self._quotas = quotas
        self._slots = Slots(policies, scene, self.adaptive)
        self._lines = Lines(policies, self._weight)
        self._holds = Holds()
        self._numbers = itertools.count()
        self._deadlines: list[tuple[float, int, Place]] = []
        """Of those that wait, and of some that no longer do."""
        self._known_lines: dict[str, PolicyLine] = {}

    # -- what becomes of a request

    def ask(
        self,
        applicant: Applicant,
        now: float,
        wall: float,
        would_deny: WouldDeny,
        *,
        real: float | None = None,
    ) -> Place:
        """A place that has its slot (`started`), or waits for one. `real` is the time that rates
        and quotas count by, where it is another.

        Raises TokensExhausted, RateLimited, what admission is shut for, Shed, TenantBusy,
        QueueFull, Overloaded. A limit on trial (mode dry_run) that would have refused
        it is told to `would_deny`.
        """
        real = now if real is None else real
        try:
            self._quotas.check(applicant.caller, applicant.policies, real, wall)
        except TokensExhausted as spent:
            rated = self._rates.refusal(applicant, real)
            raise max(spent, rated or spent, key=_told_to_wait) from None
        counted = self._rates.take(applicant, real, would_deny) if applicant.rated else None
        if self.shut is not None:
            raise copy(self.shut)
        error = self.shedding.for_memory(applicant)
        if error is not None:
            raise error
        if not len(self._lines):  # else it might take what is for those that wait
            self.adaptive.look(now)
        place = self._placed(applicant, counted, now)
        if self._slots.enforced:
            full = next(self._slots.full(place), None)
            if full is not None:
                self._queue(place, full, now)
                return place
        else:
            self._judge_trial(place, would_deny)
        self._start(place, now, waited=False)
        return place

    def turn(self, now: float) -> list[Place]:
        """Those that run from now on."""
        self.adaptive.look(now)
        begun: list[Place] = []
        known: dict[str, bool] = {}

        def in_memory(model: str) -> bool:
            if model not in known:
                known[model] = self._scene.in_memory(model)
            return known[model]

        while len(self._lines):
            place = self._next(now, in_memory)
            if place is None:
                break
            self._start(place, now, waited=True)
            begun.append(place)
        return begun

    def expire(self, now: float) -> list[tuple[Place, MlxdError]]:
        """Those whose time in the queue is over, and what they are told."""
        expired: list[tuple[Place, MlxdError]] = []
        while self._deadlines and self._deadlines[0][0] <= now:
            _, _, place = heapq.heappop(self._deadlines)
            if not place.over and place.started is None:
                error = self._too_late(place, now)
                self._give_up(place)
                expired.append((place, error))
        return expired

    def next_expiry(self) -> float | None:
        """When `expire` is to be asked next."""
        while self._deadlines:
            at, _, place = self._deadlines[0]
            if not place.over and place.started is None:
                return at
            heapq.heappop(self._deadlines)
        return None

    def leave(
        self,
        place: Place,
        now: float,
        wall: float,
        *,
        tokens: int | None = None,
        refund: bool = False,
        real: float | None = None,
    ) -> None:
        """It ends, or waits no longer; once is enough. `tokens`: what it took, None where that is
        not known. `refund`: it does not count towards its client's rates.
        """
        if place.over:
            return
        if refund and place.counted is not None:
            place.counted.refund()
        if place.started is None:
            self._give_up(place)
            return
        place.over = True
        self._slots.give_back(place)
        self._lines.end(place, tokens)
        self._holds.note(place.model, now - place.started)
        self.adaptive.ran(self.active)
        if tokens:
            caller, policies = place.applicant.caller, place.applicant.policies
            self._quotas.charge(caller, policies, tokens, now if real is None else real, wall)

    def loaded(self, place: Place) -> None:
        """It waits for its model no longer."""
        self._slots.loaded(place)

    def apply(self, policies: PolicySet) -> None:
        """New policies are in force. Nothing that runs or waits is stopped by them."""
        self._policies = policies
        self._known_lines.clear()
        self.adaptive.apply(policies)
        self._slots.apply(policies)
        self._lines.apply(policies)
        self._rates.apply(policies)

    # -- what there is

    @property
    def policies(self) -> PolicySet:
        """Those in force."""
        return self._policies

    @property
    def active(self) -> int:
        return len(self._slots.active)

    @property
    def running(self) -> list[Place]:
        """The longest first."""
        return sorted(self._slots.active, key=lambda place: (place.started or 0.0, place.number))

    @property
    def slots(self) -> int:
        """That there are now."""
        return self._slots.most

    @property
    def free_slots(self) -> int:
        return self._slots.free

    @property
    def active_by_model(self) -> Mapping[str, int]:
        return self._slots.by_model

    @property
    def active_by_client(self) -> Mapping[str, int]:
        return self._slots.by_client

    @property
    def active_by_class(self) -> Mapping[Priority, int]:
        return self._slots.by_class

    @property
    def waiting(self) -> dict[Priority, int]:
        return {klass: self._lines.waiting(klass) for klass in PRIORITIES}

    @property
    def waiting_tokens(self) -> float:
        """Expected of all that wait."""
        return self._lines.tokens

    def places_waiting(self) -> list[Place]:
        """Class by class, the next first."""
        return [*self._lines]

    def position(self, place: Place) -> int:
        """1: it goes next. By the order as it is now, whatever limits of models and tenants let
        somebody pass.
        """
        return self._lines.ahead(place) + 1

    def expected_wait(self, who: Place | Priority, now: float) -> float:
        """Seconds until one that waits gets its slot, or one more of a class would; roughly."""
        if isinstance(who, Place):
            return self._after(self._lines.ahead(who))
        ahead = self._lines.ahead_of_new(who)
        if not ahead and self.free_slots and not self._slots.class_is_full(who):
            return 0.0
        return self._after(ahead)

    def retry_after(self, klass: Priority, now: float) -> float:
        """Seconds, for one that is refused."""
        said = self._policies.limits.concurrency.retry_after
        if said != "auto":
            return float(said)
        return min(max(LEAST_RETRY, self.expected_wait(klass, now)), MOST_RETRY)

    # -- deciding

    def _placed(self, applicant: Applicant, counted: Counted | None, now: float) -> Place:
        return Place(
            applicant=applicant,
            klass=applicant.klass,
            client=applicant.caller.name,
            cost=max(1.0, applicant.cost),
            came=now,
            deadline=now + float(applicant.policies.timeouts.queue),
            number=next(self._numbers),
            counted=counted,
        )

    def _next(self, now: float, in_memory: Callable[[str], bool]) -> Place | None:
        slots = self._slots
        if not slots.enforced:
            return self._lines.next(now, _anyone, _anyone, in_memory)
        if not slots.free:
            return None
        return self._lines.next(
            now, slots.gate(), lambda klass: not slots.class_is_full(klass), in_memory
        )

    def _start(self, place: Place, now: float, *, waited: bool) -> None:
        place.started = now
        self._lines.start(place, now, waited=waited)
        self._slots.take(place)
        self.adaptive.ran(self.active)

    def _queue(self, place: Place, full: Full, now: float) -> None:
        """Have it wait, or raise why it may not."""
        error = self.shedding.for_latency(place.applicant, now)
        if error is not None:
            raise error
        waiting, limits = len(self._lines), self._policies.limits.concurrency
        own = getattr(self._policies.clients.priorities, place.klass)
        if not limits.max_waiting or not own.queue:
            if full.tenant and place.counted is not None:
                place.counted.refund()  # as whatever is refused for the client's own sake
            raise self._no_slot(place, full, now)
        if waiting >= limits.max_waiting:
            raise self._queue_full(place, "limits.concurrency.max_waiting", waiting, now)
        if waiting and self._lines.tokens + place.cost > limits.max_waiting_tokens:
            raise self._queue_full(place, "limits.concurrency.max_waiting_tokens", waiting, now)
        of_class = self._lines.waiting(place.klass)
        if of_class >= own.queue:
            raise self._queue_full(place, f"clients.priorities.{place.klass}.queue", of_class, now)
        place.waits_for = full.key
        self._lines.add(place, now)
        heapq.heappush(self._deadlines, (place.deadline, place.number, place))

    def _give_up(self, place: Place) -> None:
        place.over = True
        self._lines.remove(place)
        if len(self._deadlines) > 2 * len(self._lines) + 64:
            live = [entry for entry in self._deadlines if not entry[2].over]
            self._deadlines = [entry for entry in live if entry[2].started is None]
            heapq.heapify(self._deadlines)

    def _judge_trial(self, place: Place, would_deny: WouldDeny) -> None:
        """As many over a limit as may wait would not have been refused."""
        limits = self._policies.limits.concurrency
        if limits.mode == "dry_run":
            for full in self._slots.full(place):
                if full.taken - full.limit >= limits.max_waiting:
                    would_deny(full.rule)

    def _weight(self, place: Place) -> int:
        return self._slots.weight(place.applicant.caller)

    def _after(self, ahead: int) -> float:
        running = max(1, min(self._slots.most, len(self._slots.active)))
        return (ahead + 1) * self._holds.typical(self._slots.by_model) / running

    def line(self, key: str) -> PolicyLine:
        """Where a policy in force was set."""
        return self._line(key)

    # -- refusing

    def _no_slot(self, place: Place, full: Full, now: float) -> MlxdError:
        kind = TenantBusy if full.tenant else Overloaded
        return kind(
            full.words,
            retry_after=self.retry_after(place.klass, now),
            policy=self._line(full.key),
            numbers={"running": full.taken, "limit": full.limit, "rule": full.rule},
            would_pass="the same request once one of those that run has ended",
        )

    def _queue_full(self, place: Place, key: str, waiting: int, now: float) -> MlxdError:
        return QueueFull(
            f"Server overloaded. {waiting} requests wait, as many as may"
            " (server busy, please try again)",
            retry_after=self.retry_after(place.klass, now),
            policy=self._line(key),
            numbers={
                "waiting": waiting,
                "waiting_tokens": round(self._lines.tokens),
                "expected_tokens": round(place.cost),
                "running": self.active,
                "rule": "queue",
            },
            would_pass="the same request once one of those that wait has its slot",
        )

    def _too_late(self, place: Place, now: float) -> MlxdError:
        policies, waited = place.applicant.policies, now - place.came
        return QueueTimeout(
            f"Server overloaded. No slot was free within {float(policies.timeouts.queue):g} s"
            " (server busy, please try again)",
            retry_after=self.retry_after(place.klass, now),
            policy=policies.line("timeouts.queue"),
            numbers={
                "waited": round(waited, 3),
                "position": self.position(place),
                "running": self.active,
                "rule": "queue",
            },
            would_pass="a longer timeouts.queue, or a request when fewer wait",
        )

    def _line(self, key: str) -> PolicyLine:
        known = self._known_lines.get(key)
        if known is None:
            known = self._known_lines[key] = self._policies.line(key)
        return known


def _told_to_wait(error: MlxdError) -> float:
    return error.retry_after or 0.0


def _anyone(place: object) -> bool:
    return True
