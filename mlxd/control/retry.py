"""What Retry-After tells whoever is refused because others are served. Pure."""

from __future__ import annotations

from mlxd.policy.policy_set import PolicySet

_LEAST, _MOST = 1.0, 30.0
"""Seconds."""


def retry_after(policies: PolicySet, expected: float) -> float:
    """Seconds, where something is expected to change in so many: policy may say others."""
    said = policies.limits.concurrency.retry_after
    return min(max(_LEAST, expected), _MOST) if said == "auto" else float(said)
