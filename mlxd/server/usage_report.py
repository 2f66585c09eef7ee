"""What tenants have used of their tokens: for /admin/usage, `mlxd keys list` and metrics."""

from __future__ import annotations

from typing import Any

from mlxd.control.applicant import ANONYMOUS
from mlxd.control.quotas import DAY_S
from mlxd.control.usage import Usage
from mlxd.core.story import Story
from mlxd.policy.policy_set import PolicySet
from mlxd.server.answers import iso
from mlxd.telemetry.metrics import Metrics


def usage_of(usage: Usage, policies: PolicySet) -> dict[str, Any]:
    """Of every tenant that has limits or has used something today; null: it has no such limit."""
    midnight = usage.today * DAY_S
    return {
        "day": iso(midnight)[: len("2026-01-31")],
        "resets_at": iso(midnight + DAY_S),
        "tenants": [
            {
                "tenant": use.tenant,
                "tokens_today": use.today,
                "tokens_in_window": use.recently,
                "window_seconds": float(use.limits.window),
                "limits": {
                    "daily_tokens": use.limits.daily_tokens,
                    "tokens": use.limits.tokens,
                    "requests": use.limits.requests,
                    "max_in_flight": use.limits.max_in_flight,
                },
            }
            for use in usage.uses(policies)
        ],
    }


def count_tokens(metrics: Metrics, story: Story) -> None:
    """Of a request that has ended, as quotas count them."""
    if not story.computed:
        return
    tenant = story.caller.tenant or ANONYMOUS
    metrics.tenant_tokens(tenant, story.prompt_tokens, story.completion_tokens)
