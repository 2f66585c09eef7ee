"""The daemon that a test sees: its own scheduler and answers, on a clock that the test moves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from mlxd.control.applicant import Applicant
from mlxd.control.guard import Guard
from mlxd.control.monitors import Monitors
from mlxd.control.place import Place
from mlxd.control.quotas import Quotas
from mlxd.control.rates import Rates
from mlxd.control.rules import rule_of
from mlxd.control.scheduler import Scheduler
from mlxd.control.shedding import Strain
from mlxd.core.caller import PRIORITIES, Caller, Priority
from mlxd.core.clock import ManualClock
from mlxd.core.errors import MlxdError
from mlxd.policy.policy_set import PolicySet
from mlxd.server.errors import error_response, in_ollama
from mlxd.server.memory_report import status
from mlxd.simulate.expect import InOrder
from mlxd.simulate.layers import Changes, Layers
from mlxd.simulate.machine import Machine, Requests, State, Uncounted, finished
from mlxd.simulate.naming import check_allowed, meant
from mlxd.telemetry.events import Events


@dataclass(frozen=True, slots=True)
class Asking:
    """What a test says of a request."""

    caller: Caller
    model: str
    priority: Priority | None = None
    tokens: int | None = None
    user: str = ""
    name: str = ""
    brief: bool = False
    """It is over as soon as it runs."""


@dataclass(slots=True, eq=False)
class Request:
    """One that runs or waits."""

    asking: Asking
    place: Place

    @property
    def rank(self) -> tuple[int, float]:
        """The highest is ended first where memory is short."""
        return PRIORITIES.index(self.place.klass), self.place.started or 0.0


@dataclass(frozen=True, slots=True)
class Which:
    """Those that a test means; None: it does not matter."""

    address: str | None = None
    tenant: str | None = None
    priority: Priority | None = None
    name: str | None = None

    def holds(self, request: Request) -> bool:
        caller = request.asking.caller
        pairs = (
            (self.address, caller.address),
            (self.tenant, caller.tenant),
            (self.priority, request.place.klass),
            (self.name, request.asking.name),
        )
        return all(wanted in (None, found) for wanted, found in pairs)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client got, or that it waits."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    code: str = ""
    message: str = ""
    policy: str = ""
    """The key that decided."""
    would_deny: tuple[str, ...] = ()
    position: int = 0
    """In the queue; 0: it does not wait."""

    @property
    def words(self) -> str:
        """What a refusal says, for a message."""
        return f"{self.code}: {self.message}" if self.code else ""


class World:
    """What the steps of one test act on. Its clock begins at 0, at midnight (UTC)."""

    def __init__(self, layers: Layers, policies: PolicySet) -> None:
        self.clock = ManualClock(now=0.0, epoch=0.0)
        self.scheduler = Scheduler(policies, self, Rates(), Quotas())
        self.layers = layers
        self.policies = policies
        self.acted: set[str] = set()
        """Rules that have refused, or in mode dry_run would have."""
        self._models: dict[str, str] = {}
        """What names mean by the policies in force, as far as somebody has asked."""
        self._running: list[Request] = []
        """The longest first."""
        self._waiting: dict[Place, Request] = {}
        self._begun: list[Request] = []
        """Those that had waited and have got a slot since the step began."""
        self._late = 0
        """Those that have waited too long since then."""
        self.machine = Machine(
            Requests(self._lowest, self._end_lowest),
            lambda: self.policies.memory.eviction.keep,
        )
        self.guard = Guard(
            policies,
            Monitors(self.machine.read, lambda: None, list),
            self.machine,
            self,
            clock=self.clock,
            events=Events(self.clock),
            counts=Uncounted(),
        )

    # -- time

    def begin(self, at: float) -> None:
        """The next step begins."""
        self._begun.clear()
        self._late = 0
        self.advance(at)

    def advance(self, to: float) -> None:
        """Let time pass: who has waited for too long goes."""
        while (due := self.scheduler.next_expiry()) is not None and due <= to:
            self.clock.now = max(self.clock.now, due)
            for place, error in self.scheduler.expire(self.clock.now):
                self.acted.add(rule_of(error, place.applicant))
                del self._waiting[place]
                self._late += 1
            self._turn()
        self.clock.now = max(self.clock.now, to)

    # -- requests

    @property
    def running(self) -> int:
        return len(self._running)

    def facts(self) -> dict[str, object]:
        """What any step may expect."""
        return {
            "running": self.running,
            "queued": len(self._waiting),
            "queue_timeout": self._late,
            "started": InOrder(tuple((r.asking.name, r.place.klass) for r in self._begun)),
        }

    def ask(self, asking: Asking) -> Answer:
        """One generation, which runs until it is ended, if it is not brief."""
        would_deny: list[str] = []
        applicant = Applicant(
            asking.caller,
            self.policies,
            self._meant(asking.model),
            priority=asking.priority,
            cost=float(asking.tokens or 1),
            user=asking.user,
        )
        now, wall = self.clock.monotonic(), self.clock.wall()
        try:
            check_allowed(applicant)
            place = self.scheduler.ask(applicant, now, wall, would_deny.append)
        except MlxdError as error:
            self.acted |= {rule_of(error, applicant), *would_deny}
            return _refusal(error, tuple(would_deny))
        self.acted.update(would_deny)
        request = Request(asking, place)
        if place.started is None:
            self._waiting[place] = request
            return Answer(0, position=self.scheduler.position(place))
        self._running.append(request)
        if asking.brief:
            self._leave(request)
        return Answer(200, would_deny=tuple(would_deny))

    def end(self, count: int | None, which: Which, tokens: int | None = None) -> int:
        """End the oldest running of these, one after the other, or all that run now; says how many.
        By name one that waits is ended too. `tokens`: what each took; None: as was said of it.
        """
        most = len(self._which(which)) if count is None else count
        for ended in range(most):
            found = self._which(which)
            if not found:
                return ended
            self._leave(found[0], tokens)
        return most

    # -- policies and memory

    def edit(self, changes: Changes) -> None:
        """Put other policies in force. Raises PolicyErrors, and then everything stays."""
        layers = self.layers.over(changes)
        policies = layers.judged()
        self.layers = layers
        self.policies = replace(policies, generation=self.policies.generation + 1)
        self._models.clear()
        self.scheduler.apply(self.policies)
        self.guard.apply(self.policies)
        self.look()
        self._turn()

    def look(self) -> None:
        """The guard looks at memory, once, and does what follows from it."""
        finished(self.guard.check())

    def fill(self, used: float, loaded: Mapping[str, State] | None, frees: float) -> None:
        """So much of the memory is in use, and these models are there (None: as before)."""
        self.machine.used, self.machine.frees = used, frees
        if loaded is not None:
            self.machine.hold(loaded)
        self.machine.evicted()
        self.look()

    @property
    def health(self) -> str:
        """The status that /health would tell, by what this world knows."""
        full = status(self.policies, self.guard.read(), self.guard.pressure)
        return full or ("degraded" if self.running >= self.scheduler.slots else "healthy")

    @property
    def admission_stopped(self) -> bool:
        return "stop_admission" in self.guard.lasting

    # -- what the scheduler asks

    def in_memory(self, model: str) -> bool:
        """Where a test has never said what is, everything is."""
        return not self.machine.models or model in self.machine.models

    def delays_others(self, model: str) -> bool:
        """Nothing is ever loaded here."""
        return False

    # -- what the guard has done

    def shut(self, error: MlxdError | None) -> None:
        """Those that wait are refused with it, too."""
        self.scheduler.shut = error
        if error is not None:
            for request in list(self._waiting.values()):
                self._give_back(request, None)

    def strain(self, strain: Strain | None) -> None:
        self.scheduler.shedding.strain = strain

    # -- inside

    def _meant(self, name: str) -> str:
        found = self._models.get(name)
        if found is None:
            found = self._models[name] = meant(name, self.policies.models)
        return found

    def _which(self, which: Which) -> list[Request]:
        """Those that run, the longest first; by a name also those that wait."""
        running = [one for one in self._running if which.holds(one)]
        named = self._waiting.values() if which.name is not None else ()
        return running + [one for one in named if which.holds(one)]

    def _leave(self, request: Request, tokens: int | None = None) -> None:
        self._give_back(request, request.asking.tokens if tokens is None else tokens)
        self._turn()

    def _give_back(self, request: Request, tokens: int | None) -> None:
        place = request.place
        if place.started is None:
            del self._waiting[place]
        else:
            self._running.remove(request)
        self.scheduler.leave(place, self.clock.monotonic(), self.clock.wall(), tokens=tokens)

    def _turn(self) -> None:
        """Have those run that may; who is brief makes room for the next at once."""
        begun = self.scheduler.turn(self.clock.monotonic())
        while begun:
            requests = [self._waiting.pop(place) for place in begun]
            self._begun += requests
            self._running += requests
            for request in requests:
                if request.asking.brief:
                    self._give_back(request, request.asking.tokens)
            begun = self.scheduler.turn(self.clock.monotonic())

    def _lowest(self) -> tuple[int, float] | None:
        return max((request.rank for request in self._running), default=None)

    def _end_lowest(self) -> bool:
        if not self._running:
            return False
        newest_first = reversed(self._running)
        self._leave(max(newest_first, key=lambda request: request.rank))
        return True


def _refusal(error: MlxdError, would_deny: tuple[str, ...]) -> Answer:
    response = error_response(error, in_ollama)
    return Answer(
        response.status,
        response.headers,
        code=error.code,
        message=error.message,
        policy=error.policy.key if error.policy is not None else "",
        would_deny=would_deny,
    )
