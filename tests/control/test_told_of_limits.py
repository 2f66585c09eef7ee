"""What is told of limits is what happens, under random policies and edits of them: what is left and
for how long, which rule decides and where it stands, and whether anybody has to wait.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from mlxd.control.applicant import Applicant
from mlxd.control.place import Place
from mlxd.control.quotas import Quotas
from mlxd.control.rates import Rates, RateState
from mlxd.control.rules import rule_of, rules_in_force
from mlxd.control.scheduler import Scheduler
from mlxd.control.shedding import Strain
from mlxd.control.watermarks import Level
from mlxd.core.caller import PRIORITIES, Caller
from mlxd.core.errors import MlxdError, RateLimited, TenantBusy, TokensExhausted
from mlxd.policy.explain import explain
from mlxd.policy.load import load
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.strict_yaml import parts
from tests.support.daemon import write_policies
from tests.support.policy_draws import MODELS, TENANTS, drawn
from tests.support.queue_model import Models

_HARDLY = 1e-3
"""Seconds."""


class World:
    """One random story."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.draw = random.Random(seed)
        self.folder = folder
        self.policies = self.loaded()
        self.rates, self.quotas = Rates(), Quotas()
        self.scheduler = Scheduler(self.policies, Models(), self.rates, self.quotas)
        self.scheduler.apply(self.policies)
        self.now = 0.0
        self.running: list[Place] = []
        self.seen: Counter[str] = Counter()

    def loaded(self, generation: int = 1) -> PolicySet:
        write_policies(self.folder, drawn(self.draw))
        return replace(load(self.folder), generation=generation)

    def run(self, steps: int) -> None:
        acts = (self.ask, self.end, self.edit, self.strain)
        for _ in range(steps):
            self.pass_time(self.draw.choice((0.0, 0.13, 0.5, 1.0, 3.0, 9.0)))
            self.draw.choices(acts, (60, 25, 5, 3))[0]()

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.scheduler.expire(self.now)
        self.running += self.scheduler.turn(self.now)

    def end(self) -> None:
        if self.running:
            place = self.running.pop(self.draw.randrange(len(self.running)))
            tokens = self.draw.randint(1, 20)
            self.scheduler.leave(place, self.now, self.now, tokens=tokens)

    def edit(self) -> None:
        self.policies = self.loaded(self.policies.generation + 1)
        self.scheduler.apply(self.policies)
        for told in explain(self.policies, ""):
            self.check_place(told["key"], told["source"])

    def strain(self) -> None:
        levels = (None, Level.WARNING, Level.CRITICAL)
        level = self.draw.choice(levels)
        strain = None if level is None else Strain(level, 0.9, "memory is full", 3.0)
        self.scheduler.shedding.strain = strain

    def ask(self) -> None:
        applicant = self.applicant()
        before, wait = self.left(applicant), self.scheduler.expected_wait(applicant.klass)
        trial: list[str] = []
        try:
            place = self.scheduler.ask(applicant, self.now, self.now, trial.append)
        except MlxdError as error:
            self.seen[error.code] += 1
            self.check_refusal(error, applicant, before)
        else:
            self.seen["runs" if place.started is not None else "waits"] += 1
            assert all(state.remaining > 0 for state in before.values())
            assert all(map(self.in_force, trial))
            after = self.left(applicant)
            counted = {name: state for name, state in after.items() if state.unit == "requests"}
            for name, state in counted.items():
                assert state.remaining == before[name].remaining - 1, name
            if place.started is not None:
                assert wait == 0
                self.running.append(place)

    def applicant(self) -> Applicant:
        tenant = self.draw.choice(("", "unlisted", *TENANTS))
        headers = {"x-team": "red"} if self.draw.random() < 0.5 else {}
        address = f"10.0.0.{self.draw.randint(1, 2)}"
        return Applicant(
            Caller(address, f"key of {tenant}" if tenant else "", tenant, headers),
            self.policies,
            self.draw.choice(MODELS),
            priority=self.draw.choice((None, *PRIORITIES)),
            cost=self.draw.randint(1, 20),
            user=self.draw.choice(("", "somebody")),
        )

    def left(self, one: Applicant) -> dict[str, RateState]:
        states = self.rates.states(one.caller, one.policies, self.now, one.user)
        tokens = self.quotas.remaining(one.caller, one.policies, self.now, self.now)
        return {state.name: state for state in (*states, *tokens)}

    def check_refusal(self, error: MlxdError, one: Applicant, before: dict[str, RateState]) -> None:
        assert error.policy is not None
        assert error.retry_after is not None
        assert self.in_force(rule_of(error, one))
        (told,) = explain(self.policies, error.policy.key)
        assert (told["value"], told["source"]) == (error.policy.value, error.policy.place)
        self.check_place(error.policy.key, error.policy.place)
        if isinstance(error, (RateLimited, TokensExhausted)) and not isinstance(error, TenantBusy):
            spent = [state.reset for state in before.values() if state.remaining == 0]
            assert max(spent) == pytest.approx(error.retry_after)
            if error.retry_after > _HARDLY:
                self.pass_time(error.retry_after - _HARDLY)
                assert self.is_spent(one)
                self.pass_time(2 * _HARDLY)
                assert not self.is_spent(one)

    def is_spent(self, one: Applicant) -> bool:
        try:
            self.quotas.check(one.caller, one.policies, self.now, self.now)
        except TokensExhausted:
            return True
        return self.rates.refusal(one, self.now) is not None

    def in_force(self, rule: str) -> bool:
        return rule in rules_in_force(self.policies)

    def check_place(self, key: str, place: str) -> None:
        """The line is there, and it is about that key."""
        found = re.fullmatch(rf"{self.folder.name}/(\w+\.yaml):(\d+)", place)
        if found is None:
            assert place.startswith("built-in default"), (key, place)
            return
        line = (self.folder / found[1]).read_text().splitlines()[int(found[2]) - 1]
        last = str(parts(key)[-1]).replace('"', '\\"')
        assert f'"{last}"' in line or line.startswith(f"{last}:"), (key, place, line)


def test_what_is_told_of_limits_is_what_happens(tmp_path: Path) -> None:
    seen: Counter[str] = Counter()
    for seed in (*range(12), 1028):
        world = World(seed, tmp_path / "policies")
        world.run(100)
        seen += world.seen
    assert seen.keys() >= {
        "runs", "waits", "rate_limited", "tokens_exhausted", "tenant_busy", "overloaded",
        "queue_full", "shed",
    }, seen  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1040))
def test_what_is_told_of_limits_is_what_happens_in_many_stories(seed: int, tmp_path: Path) -> None:
    World(seed, tmp_path / "policies").run(150)
