"""How policies have engines share their time between prompts and answers."""

from __future__ import annotations

from mlxd.ipc.messages import Tuning
from mlxd.policy.policy_set import PolicySet


def tuning_of(policies: PolicySet) -> Tuning:
    """What every worker is told."""
    limits = policies.limits
    stall = float(limits.batching.stall_target)
    if limits.adaptive.enabled:
        stall = min(stall, float(limits.adaptive.token_gap) / 2)
    most = limits.tokens.max_batch_tokens
    return Tuning(
        stall_seconds=stall,
        min_chunk=limits.batching.min_chunk,
        decode_share=float(limits.batching.decode_share),
        max_tokens=0 if most == "auto" else most,
    )
