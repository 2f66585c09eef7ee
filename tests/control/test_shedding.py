"""Classes are refused for memory by their `shed_at`, and for latency if they cannot run at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxd.control.adaptive import Adaptive
from mlxd.control.applicant import Applicant
from mlxd.control.shedding import Shedding, Strain, shed_rules
from mlxd.control.watermarks import Level
from mlxd.core.caller import Caller, Priority
from mlxd.core.errors import Shed
from mlxd.policy.load import load
from mlxd.policy.policy_set import PolicySet
from tests.support.daemon import write_policies

WORDS = "memory is at 96.1 %, 3.9 GiB of 100.0 GiB are available"


def asks(policies: PolicySet, priority: Priority) -> Applicant:
    return Applicant(Caller("10.0.0.1"), policies, "m", priority=priority)


def strained(level: Level) -> Strain:
    return Strain(level, 0.961, WORDS, 10.0)


@pytest.mark.parametrize(
    ("level", "shed"),
    [
        (None, ""),
        (Level.WARNING, ""),
        (Level.CRITICAL, "low"),
        (Level.EMERGENCY, "low"),
    ],
)
def test_by_default_low_alone_is_shed_from_critical_on(level: Level | None, shed: str) -> None:
    policies = load()
    shedding = Shedding(Adaptive(policies))
    shedding.strain = strained(level) if level is not None else None
    classes: tuple[Priority, ...] = ("high", "medium", "low")
    found = [k for k in classes if shedding.for_memory(asks(policies, k)) is not None]
    assert found == shed.split()


def test_each_class_has_a_mark_of_its_own(tmp_path: Path) -> None:
    text = "priorities: {low: {shed_at: warning}, medium: {shed_at: emergency}}\n"
    policies = load(write_policies(tmp_path, {"clients": text}))
    shedding = Shedding(Adaptive(policies))
    shedding.strain = strained(Level.WARNING)
    assert shedding.for_memory(asks(policies, "low")) is not None
    assert shedding.for_memory(asks(policies, "medium")) is None
    shedding.strain = strained(Level.EMERGENCY)
    assert shedding.for_memory(asks(policies, "medium")) is not None


def test_a_refusal_tells_the_mark_the_readings_and_the_policy() -> None:
    policies = load()
    shedding = Shedding(Adaptive(policies))
    shedding.strain = strained(Level.EMERGENCY)
    error = shedding.for_memory(asks(policies, "low"))
    assert isinstance(error, Shed)
    assert error.message == (
        f"{WORDS}: new requests of class low are refused (server busy, please try again)"
    )
    assert str(error.policy).startswith("clients.priorities.low.shed_at: critical (built-in")
    assert error.retry_after == 10.0
    assert error.numbers == {
        "rule": "shed:low", "class": "low",
        "mark": "critical", "level": "emergency", "share": 0.961,
    }  # fmt: skip
    assert error.would_pass == (
        "a request of class high or medium, or any once memory has left the critical mark"
    )


@pytest.mark.parametrize(
    ("written", "looks", "told"),
    [("auto", 0.1, 1.0), ("auto", 10.0, 10.0), ("auto", 600.0, 30.0), ("7s", 600.0, 7.0)],
)
def test_when_to_come_back_is_told_within_bounds_or_by_policy(
    tmp_path: Path, written: str, looks: float, told: float
) -> None:
    """`looks`: seconds until memory is read again."""
    concurrency = f"concurrency: {{retry_after: {written}}}\n"
    policies = load(write_policies(tmp_path, {"limits": concurrency}))
    shedding = Shedding(Adaptive(policies))
    shedding.strain = Strain(Level.EMERGENCY, 0.961, WORDS, looks)
    error = shedding.for_memory(asks(policies, "low"))
    assert error is not None
    assert error.retry_after == told


@pytest.mark.parametrize(
    ("written", "rules"),
    [
        ({}, ["shed:low"]),
        ({"memory": "watermarks: {critical: {actions: [block_loads]}}\n"}, []),
        ({"clients": "priorities: {low: {shed_at: never}}\n"}, []),
        ({"limits": "adaptive: {enabled: true}\n"}, ["shed:medium", "shed:low"]),
    ],
)
def test_rules_that_may_shed_are_known(
    tmp_path: Path, written: dict[str, str], rules: list[str]
) -> None:
    assert shed_rules(load(write_policies(tmp_path, written))) == rules


def test_for_latency_it_is_the_aims_that_decide(tmp_path: Path) -> None:
    text = "adaptive: {enabled: true}\n"
    policies = load(write_policies(tmp_path, {"limits": text}))
    adaptive = Adaptive(policies)
    shedding = Shedding(adaptive)
    adaptive.observe(0.0, ttft=60.0)
    assert shedding.for_latency(asks(policies, "low"), 1.0) is None
    adaptive.look(10.0)
    error = shedding.for_latency(asks(policies, "low"), 11.0)
    assert isinstance(error, Shed)
    assert shedding.for_latency(asks(policies, "medium"), 11.0) is None
