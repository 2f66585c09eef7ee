"""A day of traffic on a virtual clock: the daemon's own scheduler, with its rates and quotas,
decides on every request of a log under other policies; models and answers take the time that was
measured.

Requests come when they came: a client that would have tried again after another refusal does not. A
client that left leaves again, as long after its arrival.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import get_args

from mlxd.control.applicant import ANONYMOUS, Applicant
from mlxd.control.place import Place
from mlxd.control.quotas import Quotas
from mlxd.control.rates import Rates
from mlxd.control.scheduler import Scheduler
from mlxd.control.tempo import Tempo
from mlxd.core.caller import Caller, Priority
from mlxd.core.errors import MlxdError
from mlxd.policy.policy_set import PolicySet
from mlxd.simulate.naming import check_allowed
from mlxd.simulate.traffic.outcome import LEFT, Outcome
from mlxd.simulate.traffic.pace import Batch, paces_of
from mlxd.simulate.traffic.reading import Log, Progress
from mlxd.simulate.traffic.service import Service, Services
from mlxd.simulate.traffic.shelf import Shelf
from mlxd.telemetry.traffic import Request

_STEP = 5000
"""Requests between two words of progress."""
_TEMPO_SECONDS = 1.0
"""Between two looks at how fast an answer is."""


@dataclass(slots=True, eq=False)
class _Going:
    """One request that waits or runs."""

    request: Request
    came: float
    place: Place
    service: Service
    load_seconds: float
    outcome: Outcome
    leased: bool = False
    """It has a slot, and so counts for its model."""
    serving: bool = False
    """Its model is in memory, and it is at work."""
    tempo: Tempo | None = None
    """Where somebody wants to know how fast its answer is."""
    over: bool = False


@dataclass(slots=True)
class Result:
    """What came of a simulation."""

    outcomes: list[Outcome]
    loads: int
    evictions: int
    would_deny: Counter[str]
    """Requests that each rule in mode dry_run would have refused."""
    warnings: list[str]


class World:
    """One simulation; `run` is called once."""

    def __init__(
        self,
        log: Log,
        policies: PolicySet,
        progress: Progress = lambda done, number: None,
    ) -> None:
        self._log = log
        self._policies = policies
        self._progress = progress
        self._zero = log.requests[0].at
        paces = paces_of(log.requests)
        self._services = Services(log.requests, paces)
        self._batches: dict[str, Batch] = {}
        self._paces = paces
        self._shelf = Shelf(policies, log.memory, log.size, _at_first(log))
        self._scheduler = Scheduler(policies, self._shelf, Rates(), Quotas())
        self._now = 0.0
        self._timers: list[tuple[float, int, str, object, int]] = []
        self._numbers = count()
        self._waiting: dict[Place, _Going] = {}
        self._for_model: dict[str, list[_Going]] = defaultdict(list)
        """Those that wait for it to be in memory."""
        self._would_deny: Counter[str] = Counter()
        self._load_seconds: dict[str, float] = {}
        self._unknown: set[str] = set()

    def run(self) -> Result:
        """Every request of the log, in its order."""
        outcomes: list[Outcome] = []
        for index, request in enumerate(self._log.requests):
            came = request.asked - self._zero
            self._until(came)
            self._now = came
            outcomes.append(self._arrive(index, request, came))
            if (index + 1) % _STEP == 0:
                self._progress("simulated", index + 1)
        self._until(math.inf)
        return Result(
            outcomes,
            self._shelf.loads.total(),
            self._shelf.evictions.total(),
            self._would_deny,
            list(self._warnings()),
        )

    # -- the clock

    def _until(self, moment: float) -> None:
        """All that happens by itself before a moment, or at it."""
        while (at := self._next()) <= moment and at < math.inf:
            self._now = max(self._now, at)
            if self._timers and self._timers[0][0] <= self._now:
                self._timer()
            elif self._shelf.next() <= self._now:
                self._models()
            else:
                self._expire()

    def _next(self) -> float:
        timer = self._timers[0][0] if self._timers else math.inf
        expiry = self._scheduler.next_expiry()
        return min(timer, self._shelf.next(), math.inf if expiry is None else expiry)

    def _at(self, moment: float, what: str, of: object, version: int = 0) -> None:
        heapq.heappush(self._timers, (moment, next(self._numbers), what, of, version))

    def _timer(self) -> None:
        _, _, what, of, version = heapq.heappop(self._timers)
        if isinstance(of, _Going):
            if of.over:
                return
            if what == "first":
                self._first_token(of)
            elif what == "tempo":
                self._measure(of)
            else:
                self._end(of, LEFT)
        elif isinstance(of, str):
            batch = self._batches[of]
            if batch.version == version:
                going = batch.first()
                assert isinstance(going, _Going)
                self._end(going, going.service.code)

    # -- one request

    def _arrive(self, index: int, request: Request, came: float) -> Outcome:
        outcome = Outcome(request.tenant or ANONYMOUS, request.klass, request.model)
        if request.judged is None:
            outcome.code = LEFT if request.left else request.code
            return outcome
        applicant = _applicant(request, self._policies)
        outcome.klass = applicant.klass
        try:
            check_allowed(applicant)
            place = self._scheduler.ask(applicant, came, request.asked, self._mark)
        except MlxdError as error:
            outcome.code = error.code
            return outcome
        tokens, tenant = self._policies.limits.tokens, applicant.terms.tenant
        going = _Going(
            request,
            came,
            place,
            self._services.of(index, request, tokens, tenant),
            self._load_time(request),
            outcome,
        )
        if request.left:
            self._at(request.at + request.lasted - self._zero, "leave", going)
        if place.started is None:
            self._waiting[place] = going
        else:
            self._start(going)
        return outcome

    def _mark(self, rule: str) -> None:
        self._would_deny[rule] += 1

    def _start(self, going: _Going) -> None:
        """It has a slot."""
        going.outcome.wait = self._now - going.came
        going.leased = True
        model = going.request.model
        if self._shelf.lease(model, self._now, going.load_seconds):
            self._serve(going)
        else:
            going.outcome.loaded = True
            self._for_model[model].append(going)

    def _serve(self, going: _Going) -> None:
        """Its model is in memory."""
        self._scheduler.loaded(going.place)
        going.serving = True
        self._at(self._now + going.service.first, "first", going)

    def _first_token(self, going: _Going) -> None:
        """Or its end, where it has none."""
        if not going.service.answers:
            self._end(going, going.service.code)
            return
        request = going.request
        going.outcome.ttft = self._now - going.came + (request.judged or 0.0)
        batch = self._batch(request.model)
        batch.enter(going, going.service.work, request.choices, self._now)
        self._look_again(request.model, batch)
        if self._policies.limits.adaptive.enabled:
            going.tempo = Tempo(self._tell)
            going.tempo.begun(self._now, self._now - going.service.first, 0)
            self._at(self._now + _TEMPO_SECONDS, "tempo", going)

    def _measure(self, going: _Going, *, last: bool = False) -> None:
        """How fast its answer has been of late."""
        service = going.service
        if going.tempo is None or not 0.0 < service.work < math.inf:
            return
        left = self._batch(going.request.model).left(going, self._now) / service.work
        tokens = round(service.completion / going.request.choices * (1.0 - left))
        going.tempo.tokens(self._now, tokens, last=last)
        if not last:
            self._at(self._now + _TEMPO_SECONDS, "tempo", going)

    def _tell(self, ttft: float | None, gap: float | None) -> None:
        if self._scheduler.adaptive.observe(self._now, ttft=ttft, gap=gap):
            self._turn()

    def _end(self, going: _Going, code: str) -> None:
        """Whatever it did, it does it no more."""
        if code == going.service.code:
            self._measure(going, last=True)
        going.over = True
        going.outcome.code = code
        self._waiting.pop(going.place, None)
        model = going.request.model
        if going.leased:
            self._leave_model(going, model)
        service = going.service
        self._scheduler.leave(
            going.place,
            self._now,
            self._now + self._zero,
            tokens=service.tokens if going.serving else None,
            took=service.took if going.serving else None,
            refund=service.refund and code == service.code,
        )
        self._turn()

    def _leave_model(self, going: _Going, model: str) -> None:
        if not going.serving and going in self._for_model[model]:
            self._for_model[model].remove(going)
        batch = self._batch(model)
        batch.leave(going, self._now)
        self._look_again(model, batch)
        tenant = going.place.applicant.terms.tenant
        self._shelf.release(model, self._now, going.request.keep_alive, tenant)

    def _turn(self) -> None:
        for place in self._scheduler.turn(self._now):
            self._start(self._waiting.pop(place))

    # -- what happens by itself

    def _expire(self) -> None:
        for place, error in self._scheduler.expire(self._now):
            going = self._waiting.pop(place)
            going.over = True
            going.outcome.code = error.code
        self._turn()

    def _models(self) -> None:
        """Some are in memory now, or will not be."""
        ready, refused = self._shelf.advance(self._now)
        for model in ready:
            for going in self._for_model.pop(model, []):
                self._serve(going)
        for model, code in refused.items():
            for going in self._for_model.pop(model, []):
                self._end(going, code)
        self._turn()

    def _batch(self, model: str) -> Batch:
        batch = self._batches.get(model)
        if batch is None:
            batch = self._batches[model] = Batch(self._paces.step(model))
        return batch

    def _look_again(self, model: str, batch: Batch) -> None:
        moment = batch.next()
        if moment is not None:
            self._at(moment, "last", model, batch.version)

    # -- what the log knows

    def _load_time(self, request: Request) -> float:
        """Its own, where it waited for one; else what is usual for its model."""
        if request.load:
            return request.load
        model = request.model
        if model not in self._load_seconds:
            seconds = self._log.load_seconds(model)
            if seconds is None:
                self._unknown.add(model)
            self._load_seconds[model] = seconds or 0.0
        return self._load_seconds[model]

    def _warnings(self) -> list[str]:
        unknown = [m for m in sorted(self._unknown) if self._shelf.loads[m]]
        return [
            *self._uncounted(),
            *(f"{m}: no load of it is in the log; it is taken to load at once" for m in unknown),
            *(
                f"{m}: none of its requests was served; its times are those of all models"
                for m in sorted(self._services.guessed)
            ),
        ]

    def _uncounted(self) -> Iterator[str]:
        """Rules that count by what was not recorded: only what some rule counted by then was."""
        for rule in self._policies.limits.rate_limit:
            kind, _, header = rule.key.partition(":")
            name = header.lower()
            if kind == "header" and not any(name in one.headers for one in self._log.requests):
                yield f"rate limit {rule.name}: the header {header} is not in the log: none counts"


def _applicant(request: Request, policies: PolicySet) -> Applicant:
    caller = Caller(
        request.address, request.key, request.tenant, request.headers, owner=request.owner
    )
    return Applicant(
        caller,
        policies,
        request.model,
        priority=_priority(request.wished),
        cost=request.cost,
        rated=request.rated,
        user=request.user,
    )


def _priority(text: str) -> Priority | None:
    return next((one for one in get_args(Priority) if one == text), None)


def _at_first(log: Log) -> list[str]:
    """Models that were in memory when the log begins: those that it says so of, and those whose
    first request found them there.
    """
    found = {name: None for name, known in log.known.items() if known.loaded}
    seen: set[str] = set(log.known)
    for request in log.requests:
        if request.waited is not None and request.model not in seen:
            seen.add(request.model)
            if not request.load:
                found[request.model] = None
    return list(found)
