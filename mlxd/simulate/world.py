"""The daemon that a test sees: its own admission and answers, on a clock that the test moves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from mlxd.control.admission import Admission, Ticket
from mlxd.core.clock import ManualClock
from mlxd.core.errors import MlxdError
from mlxd.policy.policy_set import PolicySet
from mlxd.server.errors import error_response, in_ollama
from mlxd.simulate.layers import Changes, Layers


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
        self.admission = Admission(self.clock)
        self.layers = layers
        self.policies = policies
        self._running: list[Ticket] = []

    @property
    def running(self) -> int:
        return len(self._running)

    def start(self, client: str, model: str) -> Answer:
        """One generation that runs until it is ended."""
        would_deny: list[str] = []
        try:
            ticket = self.admission.enter(client, model, self.policies, would_deny.append)
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
