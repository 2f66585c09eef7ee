"""One log against one set of policies: as it was, or under others, and as it would be."""

from __future__ import annotations

from mlxd.policy.policy_set import PolicySet
from mlxd.simulate.traffic.outcome import measured
from mlxd.simulate.traffic.reading import Log, Progress
from mlxd.simulate.traffic.report import Comparison, Side
from mlxd.simulate.traffic.world import World


def compare(
    log: Log,
    policies: PolicySet,
    baseline: PolicySet | None = None,
    progress: Progress = lambda done, number: None,
) -> Comparison:
    """Without a `baseline`, before is what the log says."""
    warnings = list(log.warnings())
    if baseline is None:
        before = Side("as it was", measured(log.requests), len(log.loads), len(log.evictions))
    else:
        before, _ = _simulated(log, baseline, progress)
    after, more = _simulated(log, policies, progress)
    return Comparison(before, after, log.seconds, (*warnings, *more))


def _simulated(log: Log, policies: PolicySet, progress: Progress) -> tuple[Side, list[str]]:
    result = World(log, policies, progress).run()
    name = f"simulated under {policies.folder or 'the built-in defaults'}"
    side = Side(name, result.outcomes, result.loads, result.evictions, result.would_deny)
    return side, result.warnings
