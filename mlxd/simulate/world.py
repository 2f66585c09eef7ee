"""The daemon that a test sees: its own admission and answers, on a clock that the test moves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from mlxd.control.admission import Admission, Ticket
from mlxd.control.applicant import Applicant
from mlxd.control.guard import Guard
from mlxd.control.monitors import Monitors
from mlxd.core.caller import Caller
from mlxd.core.clock import ManualClock
from mlxd.core.errors import MlxdError
from mlxd.policy.policy_set import PolicySet
from mlxd.server.errors import error_response, in_ollama
from mlxd.server.memory_report import status
from mlxd.simulate.layers import Changes, Layers
from mlxd.simulate.machine import Machine, Requests, State, Uncounted, finished
from mlxd.telemetry.events import Events


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client got."""

    status: int
    headers: Mapping[str, str]
    code: str = ""
    message: str = ""
    policy: str = ""
    """The key that decided."""
    would_deny: tuple[str, ...] = ()
    running: int = 0
    """Requests running once it was answered."""

    @property
    def words(self) -> str:
        """What a refusal says, for a message."""
        return f"{self.code}: {self.message}" if self.code else ""


class World:
    """What the steps of one test act on. Its clock begins at 0."""

    def __init__(self, layers: Layers, policies: PolicySet) -> None:
        self.clock = ManualClock(now=0.0)
        self.admission = Admission(self.clock, policies)
        self.layers = layers
        self.policies = policies
        self._running: list[Ticket] = []
        self.machine = Machine(
            Requests(self._newest, self._end_newest),
            lambda: self.policies.memory.eviction.keep,
        )
        self.guard = Guard(
            policies,
            Monitors(self.machine.read, lambda: None, list),
            self.machine,
            self.admission,
            clock=self.clock,
            events=Events(self.clock),
            counts=Uncounted(),
        )

    @property
    def running(self) -> int:
        return len(self._running)

    def start(self, client: str, model: str) -> Answer:
        """One generation that runs until it is ended."""
        would_deny: list[str] = []
        applicant = Applicant(Caller(client), self.policies, model)
        try:
            ticket = self.admission.enter(applicant, would_deny.append)
        except MlxdError as error:
            return self._refusal(error, tuple(would_deny))
        self._running.append(ticket)
        return self._answer(200, {}, tuple(would_deny))

    def call(self, client: str, model: str) -> Answer:
        """One generation that is over at once."""
        answer = self.start(client, model)
        if not answer.code:
            self.admission.leave(self._running.pop())
        return replace(answer, running=self.running)

    def end(self, count: int | None, client: str | None) -> int:
        """End the oldest running (of a client), all of them without a count; says how many."""
        of_client = [one for one in self._running if client in (None, one.client)]
        ended = of_client[:count]
        for ticket in ended:
            self._running.remove(ticket)
            self.admission.leave(ticket)
        return len(ended)

    def edit(self, changes: Changes) -> None:
        """Put other policies in force. Raises PolicyErrors, and then everything stays."""
        layers = self.layers.over(changes)
        policies = layers.judged()
        self.layers = layers
        self.policies = replace(policies, generation=self.policies.generation + 1)
        self.admission.apply(self.policies)
        self.guard.apply(self.policies)
        self.look()

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
        most = self.policies.limits.concurrency.max_in_flight
        return full or ("degraded" if self.running >= most else "healthy")

    @property
    def admission_stopped(self) -> bool:
        return "stop_admission" in self.guard.lasting

    def _newest(self) -> float | None:
        return self._running[-1].admitted if self._running else None

    def _end_newest(self) -> bool:
        if self._running:
            self.admission.leave(self._running.pop())
            return True
        return False

    def _answer(
        self, status: int, headers: Mapping[str, str], would_deny: tuple[str, ...]
    ) -> Answer:
        return Answer(status, headers, would_deny=would_deny, running=self.running)

    def _refusal(self, error: MlxdError, would_deny: tuple[str, ...]) -> Answer:
        response = error_response(error, in_ollama)
        return replace(
            self._answer(response.status, response.headers, would_deny),
            code=error.code,
            message=error.message,
            policy=error.policy.key if error.policy is not None else "",
        )
