"""Who runs now, who waits, and who is refused: decided here, performed by others.

Told the time, it tells none, logs nothing and wakes nobody. What it refuses it raises.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from copy import copy

from mlxd.control.adaptive import Adaptive
from mlxd.control.applicant import Applicant
from mlxd.control.holds import Holds
from mlxd.control.lines import Lines
from mlxd.control.place import Place
from mlxd.control.quotas import Quotas
from mlxd.control.rates import Counted, Rates, WouldDeny
from mlxd.control.retry import retry_after
from mlxd.control.shedding import Shedding
from mlxd.control.slots import Full, Scene, Slots
from mlxd.core.caller import PRIORITIES, Priority
from mlxd.core.counts import form, plural
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
        self.expects: Callable[[Place, int], float | None] = _unknown
        """Seconds for which one, of so many of its model, will have its slot: asked as long as none
        of that model has ended.
        """
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
        full = self._full(place)
        if full is not None:
            self._queue(place, full, now)
            return place
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
        late: list[Place] = []
        while self._deadlines and self._deadlines[0][0] <= now:
            _, _, place = heapq.heappop(self._deadlines)
            if not place.over and place.started is None:
                late.append(place)
        # all are told first: each that goes would have the order of the others made anew
        expired = [(place, self._too_late(place, now)) for place in late]
        for place in late:
            self._give_up(place)
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
        took: float | None = None,
        used: bool = True,
        refund: bool = False,
        real: float | None = None,
    ) -> None:
        """It ends, or waits no longer; once is enough. `tokens`: what it took, None where that is
        not known; `took`: the same as turns count it, where that is less. `used`: whether it did
        anything with its slot. `refund`: it does not count towards its client's rates.
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
        cost = tokens if took is None else took
        self._lines.end(place, cost if used else 0)
        if used:
            self._holds.note(place.model, now - place.started)
        self.adaptive.ran(self.active)
        if tokens:
            caller, policies = place.applicant.caller, place.applicant.policies
            self._quotas.charge(caller, policies, tokens, now if real is None else real, wall)

    def loaded(self, place: Place) -> None:
        """It waits for its model no longer."""
        self._slots.loaded(place)

    def forget(self, model: str) -> None:
        """How long its requests hold their slots is learned anew, and expected until then."""
        self._holds.forget(model)
        for place in self._slots.active:
            if place.model == model:
                self._expect(place)

    def apply(self, policies: PolicySet) -> None:
        """New policies are in force. Nothing that runs or waits is stopped by them."""
        self._policies = policies
        self.adaptive.apply(policies)
        self._slots.apply(policies)
        self._lines.apply(policies)
        self._rates.apply(policies)

    def refresh(self, same: PolicySet) -> None:
        """The same values in other places: what is told from now on names those."""
        self._policies = same
        self.adaptive.refresh(same)

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
    def waiting(self) -> dict[Priority, int]:
        return {klass: self._lines.waiting(klass) for klass in PRIORITIES}

    def places_waiting(self) -> list[Place]:
        """Class by class, the next first."""
        return [*self._lines]

    def position(self, place: Place) -> int:
        """1: it goes next. By the order as it is now, whatever limits of models and tenants let
        somebody pass.
        """
        return self._lines.ahead(place) + 1

    def expected_wait(self, who: Place | Priority) -> float:
        """Seconds until one that waits gets its slot, or one more of a class would; roughly."""
        if isinstance(who, Place):
            return self._after(self._lines.ahead(who))
        if not self._slots.enforced:
            return 0.0
        if self.free_slots and not self._slots.class_is_full(who):
            return 0.0  # those that wait are held back by limits of their own
        return self._after(self._lines.ahead_of_new(who))

    def retry_after(self, klass: Priority) -> float:
        """Seconds, for one that is refused: a slot that is free is none for it."""
        return retry_after(self._policies, self._after(self._lines.ahead_of_new(klass)))

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
        if slots.enforced and not slots.free:
            return None
        return self._lines.next(
            now, slots.gate(), lambda klass: not slots.class_is_full(klass), in_memory
        )

    def _start(self, place: Place, now: float, *, waited: bool) -> None:
        place.started = now
        self._lines.start(place, now, waited=waited)
        self._slots.take(place)
        self.adaptive.ran(self.active)
        self._expect(place)

    def _expect(self, place: Place) -> None:
        """How long it will hold its slot, where nothing was learned of that yet."""
        if not self._holds.known(place.model):
            seconds = self.expects(place, self._slots.by_model[place.model])
            if seconds is not None:
                self._holds.expect(place.model, seconds)

    def _queue(self, place: Place, full: Full, now: float) -> None:
        """Have it wait, or raise why it may not."""
        error = self.shedding.for_latency(place.applicant, now)
        if error is not None:
            raise error
        nobody = not self._policies.limits.concurrency.max_waiting
        if nobody or (full.tenant and not self._most_waiting(place.klass)):
            if full.tenant and place.counted is not None:
                place.counted.refund()  # as whatever is refused for the client's own sake
            raise self._no_slot(place, full)
        lines = self._lines
        bound = self._bound(place, len(lines), lines.tokens, lines.waiting(place.klass))
        if bound is not None:
            raise self._queue_full(place, *bound)
        place.waits_for = full.key
        self._lines.add(place, now)
        heapq.heappush(self._deadlines, (place.deadline, place.number, place))

    def _most_waiting(self, klass: Priority) -> int:
        """Of a class; whatever else waits may leave it less."""
        most = self._policies.limits.concurrency.max_waiting
        own = getattr(self._policies.clients.priorities, klass).queue
        return most if own == "auto" else min(most, own)

    def _bound(
        self, place: Place, waiting: int, tokens: float, of_class: int
    ) -> tuple[str, int] | None:
        """The policy by which it may not wait behind so many, and how many it counts."""
        limits, most = self._policies.limits.concurrency, self._most_waiting(place.klass)
        of_its_class = f"clients.priorities.{place.klass}.queue", of_class
        if limits.max_waiting and not most:
            return of_its_class
        if waiting >= limits.max_waiting:
            return "limits.concurrency.max_waiting", waiting
        if waiting and tokens + place.cost > limits.max_waiting_tokens:
            return "limits.concurrency.max_waiting_tokens", waiting
        return of_its_class if of_class >= most else None

    def _give_up(self, place: Place) -> None:
        place.over = True
        self._lines.remove(place)
        if len(self._deadlines) > 2 * len(self._lines) + 64:
            live = [entry for entry in self._deadlines if not entry[2].over]
            self._deadlines = [entry for entry in live if entry[2].started is None]
            heapq.heapify(self._deadlines)

    def _full(self, place: Place) -> Full | None:
        """The first limit that leaves it no slot now."""
        return next(self._slots.full(place) if self._slots.enforced else self._own(place), None)

    def _own(self, place: Place) -> Iterator[Full]:
        """A tenant's limit holds whatever the mode of the server's is."""
        return (full for full in self._slots.full(place) if full.tenant)

    def _judge_trial(self, place: Place, would_deny: WouldDeny) -> None:
        """Of those over a limit the newest would wait; only who may not would be refused."""
        if self._policies.limits.concurrency.mode != "dry_run":
            return
        over = (full.rule for full in self._slots.full(place) if self._denies(full, place))
        for rule in dict.fromkeys(over):  # one that leaves no slot twice over denies it once
            would_deny(rule)

    def _denies(self, full: Full, place: Place) -> bool:
        beyond = full.taken - full.limit
        others = self.running[-beyond:] if beyond > 0 else []
        tokens = sum(one.cost for one in others)
        of_class = sum(one.klass == place.klass for one in others)
        return self._bound(place, beyond, tokens, of_class) is not None

    def _weight(self, place: Place) -> int:
        return self._slots.weight(place.applicant.caller)

    def _after(self, ahead: int) -> float:
        running = max(1, min(self._slots.most, len(self._slots.active)))
        return (ahead + 1) * self._holds.typical(self._slots.by_model) / running

    def _retry(self, place: Place, full: Full) -> float:
        """Where it would wait for those alone that the limit counts."""
        if full.of == "all":
            return self.retry_after(place.klass)
        own = Counter(one.model for one in self._slots.active if full.counts(one, place))
        return retry_after(self._policies, self._holds.typical(own) / max(1, own.total()))

    # -- refusing

    def _no_slot(self, place: Place, full: Full) -> MlxdError:
        kind = TenantBusy if full.tenant else Overloaded
        return kind(
            full.words,
            retry_after=self._retry(place, full),
            policy=self._line(place, full.key),
            numbers={"running": full.taken, "limit": full.limit, "rule": full.rule},
            would_pass="the same request once one of those that run has ended",
        )

    def _queue_full(self, place: Place, key: str, waiting: int) -> MlxdError:
        words, would_pass = self._bounded(place, key, waiting)
        return QueueFull(
            f"Server overloaded. {words} (server busy, please try again)",
            retry_after=self.retry_after(place.klass),
            policy=self._line(place, key),
            numbers={
                "waiting": waiting,
                "waiting_tokens": round(self._lines.tokens),
                "expected_tokens": round(place.cost),
                "running": self.active,
                "rule": "queue",
            },
            would_pass=would_pass,
        )

    def _bounded(self, place: Place, key: str, waiting: int) -> tuple[str, str]:
        """How the queue is full for it, by the policy of that name, and what would pass."""
        cure = "the same request once one of those that wait has its slot"
        if key.endswith("max_waiting_tokens"):
            tokens, more = round(self._lines.tokens), round(place.cost)
            are = form(tokens, "is", "are")
            return (
                f"{plural(tokens, 'token')} {are} expected of those that wait; with {more} of this"
                " request they would be more than may",
                "the same request once enough of those that wait have their slots",
            )
        requests, wait = plural(waiting, "request"), form(waiting, "waits", "wait")
        if not key.endswith(".queue"):
            return f"{requests} {wait}, as many as may", cure
        if waiting:
            of_class = f"{requests} of class {place.klass} {wait}, as many as may"
            return of_class, cure.replace("those that wait", "those of that class that wait")
        return (
            f"No slot is free, and no request of class {place.klass} may wait for one",
            "the same request once a slot is free for it",
        )

    def _line(self, place: Place, key: str) -> PolicyLine:
        """Of those in force; an edit that moves lines and changes nothing is no other generation,
        and whoever came since knows where they stand now.
        """
        own = place.applicant.policies
        return (own if own.generation == self._policies.generation else self._policies).line(key)

    def _too_late(self, place: Place, now: float) -> MlxdError:
        policies, waited = place.applicant.policies, now - place.came
        full = self._full(place)
        slot, others = "No slot", "fewer wait"
        if full is not None and full.whose:
            slot = f"None of the slots of {full.whose} ({full.limit} by {full.key})"
            others = f"fewer requests of {full.whose} run or wait"
        return QueueTimeout(
            f"Server overloaded. {slot} was free within {float(policies.timeouts.queue):g} s"
            " (server busy, please try again)",
            retry_after=self.retry_after(place.klass),
            policy=policies.line("timeouts.queue"),
            numbers={
                "waited": round(waited, 3),
                "position": self.position(place),
                "running": self.active,
                "rule": "queue",
            },
            would_pass=f"a longer timeouts.queue, or a request when {others}",
        )


def _unknown(place: Place, streams: int) -> float | None:
    return None


def _told_to_wait(error: MlxdError) -> float:
    return error.retry_after or 0.0
