"""Adaptive concurrency and shedding, as /health and /metrics tell them; no daemon is started."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from mlxd.control.admission import Admission
from mlxd.control.applicant import Applicant
from mlxd.control.shedding import Strain
from mlxd.control.watermarks import Level
from mlxd.core.caller import Caller
from mlxd.core.clock import ManualClock
from mlxd.core.errors import Overloaded, Shed
from mlxd.policy.load import load
from mlxd.server.adaptive_report import details, measure
from mlxd.server.parts import Parts
from mlxd.telemetry.metrics import Metrics
from tests.support.daemon import write_policies


def parts_of(admission: Admission) -> Parts:
    return cast("Parts", SimpleNamespace(admission=admission, metrics=Metrics()))


async def test_what_it_found_is_told_and_holds(tmp_path: Path) -> None:
    text = "concurrency: {max_in_flight: 8}\nadaptive: {enabled: true, max: 4, ttft: 1s}\n"
    policies, clock = load(write_policies(tmp_path, {"limits": text})), ManualClock()
    admission = Admission(clock, policies)
    parts = parts_of(admission)
    measure(parts)
    admission.measured(2.0, None)
    clock.advance(10)
    admission.measured(None, 0.01)
    assert details(parts) == {
        "limit": 3, "measured": {"ttft": 2.0}, "missed": ["ttft"], "sheds": ["low"],
    }  # fmt: skip
    assert admission.slots == 3
    for _ in range(3):
        admission.enter(Applicant(Caller("10.0.0.1"), policies, "m", priority="low"))
    with pytest.raises(Shed):
        admission.enter(Applicant(Caller("10.0.0.1"), policies, "m", priority="low"))
    with pytest.raises(Overloaded) as refused:
        admission.enter(Applicant(Caller("10.0.0.1"), policies, "m"))
    assert refused.value.policy is not None
    assert refused.value.policy.key == "limits.adaptive.ttft"
    served = parts.metrics.render().decode()
    assert "mlxd_adaptive_limit 3.0" in served
    assert 'mlxd_adaptive_missed_total{aim="ttft"} 1.0' in served
    assert 'mlxd_shed_total{class="low"} 1.0' in served
    assert 'mlxd_shed_total{class="high"} 0.0' in served


async def test_who_waits_gets_the_slot_that_an_interval_adds(tmp_path: Path) -> None:
    text = "concurrency: {max_waiting: 5}\nadaptive: {enabled: true, max: 3, ttft: 1s}\n"
    policies, clock = load(write_policies(tmp_path, {"limits": text})), ManualClock()
    admission = Admission(clock, policies)
    ask = Applicant(Caller("10.0.0.1"), policies, "m")
    admission.measured(2.0, None)
    clock.advance(10)
    admission.measured(None, 0.01)
    for _ in range(2):
        admission.enter(ask)
    waiter = asyncio.create_task(_served(admission, ask))
    await asyncio.sleep(0)
    assert admission.waiting["medium"] == 1
    admission.measured(0.5, None)
    clock.advance(10)
    admission.measured(0.5, None)
    await waiter
    assert admission.slots == 3


async def _served(admission: Admission, ask: Applicant) -> None:
    async with admission.admit(ask):
        pass


async def test_an_interval_that_ends_lets_nobody_overtake(tmp_path: Path) -> None:
    text = "concurrency: {max_waiting: 5}\nadaptive: {enabled: true, max: 3, ttft: 1s}\n"
    policies, clock = load(write_policies(tmp_path, {"limits": text})), ManualClock()
    scheduler = Admission(clock, policies).scheduler
    ask = Applicant(Caller("10.0.0.1"), policies, "m")
    scheduler.adaptive.observe(0.0, ttft=2.0)
    scheduler.adaptive.look(10.0)
    places = [scheduler.ask(ask, 10.0, 0.0, lambda rule: None) for _ in range(3)]
    scheduler.adaptive.observe(19.0, ttft=0.5)
    late = scheduler.ask(ask, 20.0, 0.0, lambda rule: None)
    assert late.started is None
    assert scheduler.turn(20.0) == [places[2]]


async def test_memory_refuses_the_classes_of_its_mark(tmp_path: Path) -> None:
    policies = load()
    admission = Admission(ManualClock(), policies)
    ask = Applicant(Caller("10.0.0.1"), policies, "m", priority="low")
    admission.strain(Strain(Level.CRITICAL, 0.96, "memory is at 96.0 %", 10.0))
    with pytest.raises(Shed):
        admission.enter(ask)
    assert admission.refused["shed:low"] == 1
    admission.enter(Applicant(Caller("10.0.0.1"), policies, "m"))
    admission.strain(None)
    admission.enter(ask)
    assert details(parts_of(admission)) is None
