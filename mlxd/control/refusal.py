"""Why a model is not loaded now, in words and numbers, with the line of policy that decided."""

from __future__ import annotations

from collections.abc import Sequence

from mlxd.control.eviction import Obstacle
from mlxd.control.judgement import Judgement
from mlxd.core.errors import InsufficientMemory, MlxdError, ModelsBusy
from mlxd.core.sizes import spoken
from mlxd.policy.policy_set import PolicySet

_IN_USE_RETRY = 10.0
_NEVER_RETRY = 60.0

KEYS: dict[Obstacle, str] = {
    "count": "models.max_loaded",
    "weights": "models.max_loaded_bytes",
    "memory": "memory.reserve.system",
    "limit": "memory.worker_limits.mlx_memory_limit",
}
"""The policy that is in the way."""
RESERVE = "memory.reserve.per_request"
"""That one, where a model would fit were nothing kept for its first generation."""


def refusal(judged: Judgement, name: str, policies: PolicySet, now: float) -> MlxdError:
    """Of model `name`, whose load has an obstacle."""
    plan = judged.plan
    key = _key(judged)
    words = _obstacle(judged, name, policies) + _in_the_way(judged, now)
    retry = _retry(judged, now)
    if plan.obstacle == "count":
        return ModelsBusy(
            words,
            retry_after=retry,
            policy=policies.line(key),
            numbers={"max_loaded": str(policies.models.max_loaded)},
            would_pass=_would_pass(judged),
        )
    return InsufficientMemory(
        words,
        needed_bytes=judged.needed,
        available_bytes=judged.present,
        retry_after=retry,
        policy=policies.line(key),
        would_pass=_would_pass(judged),
    )


def not_its_turn(name: str, loading: list[str], policies: PolicySet) -> ModelsBusy:
    """Of model `name`, which waits for other loads to end."""
    key, most = "models.load.max_parallel", policies.models.load.max_parallel
    return ModelsBusy(
        f"model '{name}' cannot be loaded: {', '.join(loading)} {_is(loading)} being loaded,"
        f" and no more than {most} may be at one time",
        retry_after=_IN_USE_RETRY,
        policy=policies.line(key),
        numbers={"loading": len(loading), "max_parallel": most},
        would_pass="the same request once one of those loads is over",
    )


def _key(judged: Judgement) -> str:
    if judged.spares:
        return f"memory.eviction.{judged.spares}"
    return RESERVE if judged.reserve_decides else KEYS[judged.plan.obstacle]


def _obstacle(judged: Judgement, name: str, policies: PolicySet) -> str:
    plan = judged.plan
    needed = f"{spoken(judged.needed)} ({judged.needed} bytes)"
    there = f"{spoken(judged.present)} ({judged.present} bytes)"
    if plan.obstacle == "count":
        count = policies.models.max_loaded
        return f"model '{name}' cannot be loaded: no more than {count} may be in memory"
    if plan.obstacle == "limit":
        return f"model '{name}' needs {needed}, and a worker may take {there}"
    if plan.obstacle == "weights":
        return f"model '{name}' has weights of {needed}, and {there} more may be in memory" + (
            " with nothing else there" if plan.never else ""
        )
    least = " even with every other model unloaded" if plan.never else ""
    return f"model '{name}' needs {needed} of memory and {there} are available{least}"


def _in_the_way(judged: Judgement, now: float) -> str:
    plan, names = judged.plan, ", ".join(judged.names)
    if plan.never:
        return ""
    if plan.at is None:
        return f"; {names} would have to leave and {_is(judged.names)} in use"
    return f"; {names} would have to leave and may in {max(0.0, plan.at - now):.3g} s"


def _would_pass(judged: Judgement) -> str:
    plan, names = judged.plan, ", ".join(judged.names)
    if plan.never:
        if judged.reserve_decides:
            most = f"{spoken(judged.reserve)} ({judged.reserve} bytes)"
            return f"the same request with {RESERVE} of at most {most}, where it takes no more"
        largest = f"a model that takes at most {spoken(judged.at_best)} ({judged.at_best} bytes)"
        return largest if plan.obstacle != "count" else "nothing, as long as no model may be loaded"
    idle = "left alone for as long as that says" if judged.spares else "not in use any more"
    return f"the same request once {names} {_is(judged.names)} {idle}"


def _is(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _retry(judged: Judgement, now: float) -> float:
    if judged.plan.never:
        return _NEVER_RETRY
    return _IN_USE_RETRY if judged.plan.at is None else judged.plan.at - now
