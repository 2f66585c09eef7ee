"""What a step of a test can do: one class each, listed in KINDS at the end.

A kind is the key that a step writes for it; its fields are what stands under that key. `expects`
are the keys of its `expect`, and `run` gives an outcome with a fact for each of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from mlxd.policy import keys
from mlxd.policy.load import PolicyErrors
from mlxd.policy.schema import Policy
from mlxd.policy.schema.base import Name
from mlxd.policy.strict_yaml import Path, parts
from mlxd.policy.units import Delay, Ratio, got, written
from mlxd.server.identity import client_at
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
from mlxd.simulate.world import Answer, World

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
    """Something that a client does, whose quota is counted by address or by name."""

    ip: Address | None = None
    client: Name | None = None

    @classmethod
    def read(cls, reading: Reading, value: Any, path: Path) -> Self | None:
        found = super().read(reading, value, path)
        if found is not None and found.ip is not None and found.client is not None:
            reading.refuse((*path, "client"), "expected either ip or client, got both")
        return found

    @property
    def named(self) -> str | None:
        """Whose quota it is, if the step says so."""
        return client_at(self.ip) if self.ip is not None else self.client


class _Requests(_OfClient):
    """Requests, one after the other."""

    expects: ClassVar[type[Expect]] = ExpectAnswers
    n: Many = 1
    model: Name = "some-model"

    @property
    def requests(self) -> int:
        return self.n

    @property
    def whose(self) -> str:
        return self.named or client_at("127.0.0.1")


class Start(_Requests):
    """`start: {n, ip, client, model}`: requests that run until they are ended."""

    kind: ClassVar[str] = "start"

    def run(self, world: World) -> list[Outcome]:
        whose = self.whose
        return [_answered(world.start(whose, self.model)) for _ in range(self.n)]


class Call(_Requests):
    """`call: {n, every, ip, client, model}`: requests that are each over at once."""

    kind: ClassVar[str] = "call"
    every: Delay = Delay.parse("0s")

    @property
    def lasts(self) -> float:
        return (self.n - 1) * float(self.every)

    def run(self, world: World) -> list[Outcome]:
        began, every, whose = world.clock.now, float(self.every), self.whose
        outcomes = []
        for number in range(self.n):
            world.clock.now = began + number * every
            outcomes.append(_answered(world.call(whose, self.model)))
        return outcomes


class End(_OfClient):
    """`end: {n, ip, client}`: the oldest running requests end; `n: all` is all of them."""

    kind: ClassVar[str] = "end"
    n: Literal["all"] | Many = 1

    def run(self, world: World) -> list[Outcome]:
        count = None if self.n == "all" else self.n
        ended = world.end(count, self.named)
        if count is not None and ended < count:
            raise Failed(Mismatch((self.kind, "n"), f"{count} running to be ended", str(ended)))
        return [Outcome({"running": world.running})]


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
        return [Outcome({"refused": bool(errors), "running": world.running}, errors)]


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
        return [Outcome({"running": world.running})]


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
            "running": world.running,
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


def _answered(answer: Answer) -> Outcome:
    facts = {
        "status": answer.status,
        "code": answer.code,
        "policy": answer.policy,
        "message": answer.message,
        "header": answer.headers,
        "would_deny": answer.would_deny,
        "running": answer.running,
    }
    return Outcome(facts, answer.words)


def reasons(refused: PolicyErrors) -> str:
    """All that is wrong with changes, on one line and without the places of a file never seen."""
    return "; ".join(f"{error.key}: {error.message}" for error in refused.errors)


KINDS: dict[str, type[StepKind]] = {
    kind.kind: kind for kind in (Start, Call, End, Edit, Check, MemoryUse)
}
