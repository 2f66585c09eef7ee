"""What a step of a test can do: one class each, listed in KINDS at the end.

A kind is the key that a step writes for it; its fields are what stands under that key. `expects`
are the keys of its `expect`, and `run` gives an outcome with a fact for each of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from mlxd.core.caller import Caller, Priority
from mlxd.policy import keys
from mlxd.policy.load import PolicyErrors
from mlxd.policy.schema import Policy
from mlxd.policy.schema.base import Header, Name, Positive
from mlxd.policy.strict_yaml import Path, parts
from mlxd.policy.units import Delay, Ratio, got, written
from mlxd.server.forwarded import client_at
from mlxd.simulate.expect import (
    Address,
    Expect,
    ExpectAnswers,
    ExpectEdit,
    ExpectMemory,
    Failed,
    Mismatch,
    Outcome,
)
from mlxd.simulate.layers import read_changes
from mlxd.simulate.machine import State
from mlxd.simulate.reading import Reading, suggestion
from mlxd.simulate.world import Answer, Asking, Which, World

Many = Annotated[int, Field(ge=1, le=100_000)]


class StepKind(Policy):
    """One thing that a step does."""

    kind: ClassVar[str]
    expects: ClassVar[type[Expect]] = Expect

    @classmethod
    def read(cls, reading: Reading, value: Any, path: Path) -> Self | None:
        """What stands under the key; None, and the errors in `reading`, where that is wrong."""
        return reading.model(cls, value, path)

    @property
    def requests(self) -> int:
        """How many answers `run` gives: a list of expectations has to speak for all of them."""
        return 1

    @property
    def lasts(self) -> float:
        """Seconds."""
        return 0.0

    def run(self, world: World) -> list[Outcome]:
        """Do it. Raises Failed where no expectation can make it right."""
        raise NotImplementedError


class _OfClient(StepKind):
    """Something that a client does: one by its address, by a name in its place, or of a tenant."""

    ip: Address | None = None
    client: Name | None = None
    tenant: Name | None = None
    name: Name | None = None
    priority: Priority | None = None

    @classmethod
    def read(cls, reading: Reading, value: Any, path: Path) -> Self | None:
        found = super().read(reading, value, path)
        if found is not None and found.ip is not None and found.client is not None:
            reading.refuse((*path, "client"), "expected either ip or client, got both")
        return found

    @property
    def address(self) -> str | None:
        """If the step says so."""
        return client_at(self.ip) if self.ip is not None else self.client


class _Requests(_OfClient):
    """Requests, one after the other."""

    expects: ClassVar[type[Expect]] = ExpectAnswers
    brief: ClassVar[bool]
    n: Many = 1
    model: Name = "some-model"
    tokens: Positive | None = None
    user: str = ""
    headers: Mapping[Header, str] = {}

    @property
    def requests(self) -> int:
        return self.n

    @property
    def asking(self) -> Asking:
        tenant = self.tenant or ""
        headers = {name.lower(): value for name, value in self.headers.items()}
        caller = Caller(self.address or client_at("127.0.0.1"), tenant, tenant, headers)
        return Asking(
            caller=caller,
            model=self.model,
            priority=self.priority,
            tokens=self.tokens,
            user=self.user,
            name=self.name or "",
            brief=self.brief,
        )


class Start(_Requests):
    """`start: {n, ip, ...}`: requests that run until they are ended."""

    kind: ClassVar[str] = "start"
    brief: ClassVar[bool] = False

    def run(self, world: World) -> list[Outcome]:
        asking = self.asking
        return [_answered(world, world.ask(asking)) for _ in range(self.n)]


class Call(_Requests):
    """`call: {n, every, ip, ...}`: requests that are each over at once."""

    kind: ClassVar[str] = "call"
    brief: ClassVar[bool] = True
    every: Delay = Delay.parse("0s")

    @property
    def lasts(self) -> float:
        return (self.n - 1) * float(self.every)

    def run(self, world: World) -> list[Outcome]:
        began, every, asking = world.clock.now, float(self.every), self.asking
        outcomes = []
        for number in range(self.n):
            world.advance(began + number * every)
            outcomes.append(_answered(world, world.ask(asking)))
        return outcomes


class End(_OfClient):
    """`end: {n, ip, ...}`: the oldest running requests end; `n: all` is all of them. By its name
    one that waits is ended too: its client has gone.
    """

    kind: ClassVar[str] = "end"
    n: Literal["all"] | Many = 1
    tokens: Annotated[int, Field(ge=0)] | None = None
    """That each of them took; as many as its step said, if it is not written."""

    def run(self, world: World) -> list[Outcome]:
        count = None if self.n == "all" else self.n
        which = Which(self.address, self.tenant, self.priority, self.name)
        ended = world.end(count, which, self.tokens)
        if count is not None and ended < count:
            raise Failed(Mismatch((self.kind, "n"), f"{count} running to be ended", str(ended)))
        return [Outcome(world.facts())]


class Wait(StepKind):
    """`wait: 30s`: time passes, and who has waited too long in the queue is refused."""

    kind: ClassVar[str] = "wait"
    time: Delay

    @classmethod
    def read(cls, reading: Reading, value: Any, path: Path) -> Self | None:
        return super().read(reading, {"time": value}, path)

    @property
    def lasts(self) -> float:
        return float(self.time)

    def run(self, world: World) -> list[Outcome]:
        world.advance(world.clock.now + self.lasts)
        return [Outcome(world.facts())]


class Edit(StepKind):
    """`edit: {limits: {...}}`: other policies come into force, put over the present ones."""

    kind: ClassVar[str] = "edit"
    expects: ClassVar[type[Expect]] = ExpectEdit
    changes: Mapping[str, Mapping[str, Any]]

    @classmethod
    def read(cls, reading: Reading, value: Any, path: Path) -> Self | None:
        return cls(changes=read_changes(reading, value, path))

    def run(self, world: World) -> list[Outcome]:
        errors = ""
        try:
            world.edit(self.changes)
        except PolicyErrors as refused:
            errors = reasons(refused)
        return [Outcome({"refused": bool(errors), **world.facts()}, errors)]


class Check(StepKind):
    """`check: {limits.concurrency.max_in_flight: 5}`: what is in force, written in any unit."""

    kind: ClassVar[str] = "check"
    values: Mapping[str, Any]

    @classmethod
    def read(cls, reading: Reading, value: Any, path: Path) -> Self | None:
        asked = reading.mapping(value, path, "a mapping from policies to their values")
        values = {}
        for name, text in asked.items():
            try:
                values[name] = _parsed(name, text)
            except ValueError as refused:
                reading.refuse((*path, name), str(refused))
        return cls(values=values)

    def run(self, world: World) -> list[Outcome]:
        for name, wanted in self.values.items():
            try:
                found = world.policies.value(name)
            except KeyError:
                found = None
            if found != wanted:
                raise Failed(Mismatch((self.kind, name), written(wanted), written(found)))
        return [Outcome(world.facts())]


class MemoryUse(StepKind):
    """`memory: {used, loaded, frees}`: the guard finds so much in use. `memory: 96%` is short.

    `loaded` are the models there, the longest unused first; without it they are as before.
    """

    kind: ClassVar[str] = "memory"
    expects: ClassVar[type[Expect]] = ExpectMemory
    used: Ratio
    loaded: Mapping[Name, State] | None = None
    frees: Ratio | None = None
    """What each model that is dropped gives back, of all memory; nothing, if it is not written."""

    @classmethod
    def read(cls, reading: Reading, value: Any, path: Path) -> Self | None:
        return super().read(reading, value if isinstance(value, dict) else {"used": value}, path)

    def run(self, world: World) -> list[Outcome]:
        world.fill(float(self.used), self.loaded, float(self.frees or 0.0))
        facts = {
            "evicted": world.machine.evicted(),
            "loads": "blocked" if world.machine.loads_blocked else "allowed",
            "admission": "stopped" if world.admission_stopped else "open",
            "level": world.guard.level.word,
            "health": world.health,
            **world.facts(),
        }
        return [Outcome(facts)]


def _parsed(name: str, text: Any) -> Any:
    """The value that a policy file would give the policy by this text; raises ValueError."""
    key = keys.find(parts(name))
    if key is None:
        single = [known.name for known in keys.table().values() if not known.section]
        raise ValueError(f"unknown policy; {suggestion(name, single)}")
    if key.section:
        raise ValueError("a group of policies: check them one by one")
    kind: Any = Annotated[key.annotation, Field(), *key.field.metadata]
    try:
        return TypeAdapter(kind, config=ConfigDict(strict=True)).validate_python(text)
    except ValidationError as refused:
        problem = refused.errors(include_url=False)[0]
        words = str(problem["ctx"]["error"]) if problem["type"] == "value_error" else ""
        raise ValueError(words or f"expected {key.expected}, got {got(text)}") from None


def _answered(world: World, answer: Answer) -> Outcome:
    waits = bool(answer.position)
    facts = {
        "status": "waiting" if waits else answer.status,
        "waiting": waits,
        "position": answer.position,
        "code": answer.code,
        "policy": answer.policy,
        "message": answer.message,
        "header": answer.headers,
        "would_deny": answer.would_deny,
        **world.facts(),
    }
    return Outcome(facts, f"place {answer.position} in the queue" if waits else answer.words)


def reasons(refused: PolicyErrors) -> str:
    """All that is wrong with changes, on one line and without the places of a file never seen."""
    return "; ".join(f"{error.key}: {error.message}" for error in refused.errors)


KINDS: dict[str, type[StepKind]] = {
    kind.kind: kind for kind in (Start, Call, End, Wait, Edit, Check, MemoryUse)
}
