"""What tenants have used, as metrics: the same as their quotas say."""

from __future__ import annotations

import pytest

from mlxd.core.story import Story, untold
from mlxd.server.usage_report import count_tokens
from mlxd.telemetry.metrics import Metrics


def ended(want: str) -> Story:
    story = untold("somebody")
    story.want, story.prompt_tokens, story.completion_tokens = want, 90, 10
    return story


@pytest.mark.parametrize(("want", "told"), [("answer", 90), ("embedding", 90), ("prompt", None)])
def test_tokens_are_a_tenants_where_an_engine_took_them(want: str, told: float | None) -> None:
    metrics = Metrics()
    count_tokens(metrics, ended(want))
    labels = {"tenant": "anonymous", "kind": "prompt"}
    assert metrics.registry.get_sample_value("mlxd_tenant_tokens_total", labels) == told
