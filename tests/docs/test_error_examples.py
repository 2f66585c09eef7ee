"""Examples in docs/reference/errors.md of refusals at the door are the daemon's own words."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mlxd.control.quotas import Quotas
from mlxd.control.rates import Rates
from mlxd.control.rights import check_model
from mlxd.control.scheduler import Scheduler
from mlxd.control.shedding import Strain
from mlxd.control.watermarks import Level
from mlxd.core.errors import MlxdError
from mlxd.policy.load import load
from mlxd.policy.policy_set import PolicySet
from mlxd.server.errors import in_openai
from tests.docs.test_errors import SECTIONS
from tests.support.daemon import write_policies
from tests.support.queue_model import Models, of_tenant, unheard

CLIENTS = """\
tenants:
  students:
    models: [small]
    max_in_flight: 2
    daily_tokens: 100000
"""
LIMITS = """\
concurrency:
  max_in_flight: 3
rate_limit:
  - {name: per-client, key: client, requests: 30, window: 60s}
"""
AFTERNOON = datetime(2026, 5, 4, 15, tzinfo=UTC).timestamp()


def refusal(work: Callable[[], object]) -> MlxdError:
    with pytest.raises(MlxdError) as raised:
        work()
    return raised.value


def forbidden(policies: PolicySet) -> MlxdError:
    terms = of_tenant("students", policies, "large").terms
    return refusal(lambda: check_model(terms, "large", ["large"]))


def of_scheduler(code: str, policies: PolicySet) -> MlxdError:
    """What the last of some requests is told."""
    quotas = Quotas()
    scheduler = Scheduler(policies, Models(), Rates(), quotas)
    one = of_tenant("students" if code != "shed" else "", policies, "small", "low")

    def ask(now: float) -> object:
        return scheduler.ask(one, now, AFTERNOON, unheard)

    if code == "tokens_exhausted":
        quotas.charge(one.caller, policies, 100250, 0.0, AFTERNOON)
    if code == "rate_limited":
        for number in range(30):
            place = scheduler.ask(one, float(number), AFTERNOON, unheard)
            scheduler.leave(place, float(number), AFTERNOON)
        return refusal(lambda: ask(42.6))
    if code == "tenant_busy":
        ask(0.0)
        ask(0.0)
    if code == "shed":
        words = "memory is at 96.1 %, 0.6 GiB of 16.0 GiB are available"
        scheduler.shedding.strain = Strain(Level.CRITICAL, 0.961, words, 5.0)
    return refusal(lambda: ask(0.0))


@pytest.mark.parametrize(
    "code", ["forbidden", "rate_limited", "tokens_exhausted", "tenant_busy", "shed"]
)
def test_an_example_is_what_the_daemon_says(code: str, tmp_path: Path) -> None:
    folder = write_policies(tmp_path / "policies", {"clients": CLIENTS, "limits": LIMITS})
    policies = load(folder)
    error = forbidden(policies) if code == "forbidden" else of_scheduler(code, policies)
    assert error.code == code
    said, told = in_openai(error), SECTIONS[code].example
    assert said == told, json.dumps(said, indent=2)
