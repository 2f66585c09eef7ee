"""What a request for a model is told whose worker keeps failing: why, until when, what to do."""

from __future__ import annotations

from mlxd.control.breaker import State
from mlxd.control.faults import blame
from mlxd.control.slot import Slot
from mlxd.core.errors import (
    BreakerOpen,
    MlxdError,
    ModelLoadFailed,
    ModelQuarantined,
    WorkerCrashed,
)
from mlxd.policy.policy_set import PolicySet

_PROBE_SECONDS = 5.0
"""What Retry-After says while a probe is under way: nobody knows how long a load takes."""


def refusal(slot: Slot, policies: PolicySet) -> MlxdError | None:
    """Why no start is waited for; None: none is needed, or it is only some time away."""
    match slot.state:
        case State.QUARANTINED:
            return _quarantined(slot, policies)
        case State.OPEN:
            return _open(slot, policies)
        case State.BACKING_OFF if slot.final is not None:
            error = ModelLoadFailed(
                f"{slot.final.message}; it is not tried again for {spoken(slot.wait)}",
                retry_after=slot.wait,
                policy=policies.line("supervision.worker.backoff.base"),
                numbers=_numbers(slot),
                would_pass=_mended(slot),
            )
            error.final = True
            return _with_cause(error, slot, policies)
    return None


def full(slot: Slot, policies: PolicySet) -> MlxdError:
    """A probe is under way, and as many requests wait for it as may."""
    return BreakerOpen(
        f"{_failed(slot)}; it is being tried, and no more requests may wait for that. "
        f"{_what_to_do(slot)}",
        retry_after=_PROBE_SECONDS,
        policy=policies.line("supervision.worker.breaker.half_open_probes"),
        numbers={
            "failures": slot.failures,
            "waiting": slot.joined,
            "may_wait": policies.supervision.worker.breaker.half_open_probes,
        },
        would_pass=_served_again(slot),
    )


def backing_off(slot: Slot) -> MlxdError:
    """What those are told whose time is over before the next start; loading.py says which time."""
    return WorkerCrashed(
        f"{_failed(slot)}; it is started again in {spoken(slot.wait)}",
        retry_after=slot.wait,
        numbers=_numbers(slot),
        would_pass=_served_again(slot),
    )


def words_of(slot: Slot) -> str:
    """A line for people who look after the daemon; empty: nothing is wrong."""
    match slot.state:
        case State.BACKING_OFF:
            return f"{_failed(slot)}; it may be started again in {spoken(slot.wait)}"
        case State.OPEN:
            return f"{_failed(slot)}; the next probe is in {spoken(slot.wait)}. {_what_to_do(slot)}"
        case State.PROBING:
            return f"{_failed(slot)}; it is being tried now"
        case State.QUARANTINED:
            return f"{_failed(slot)}; it is quarantined for {spoken(slot.wait)}. {_cure(slot)}"
        case _:
            return ""


def _open(slot: Slot, policies: PolicySet) -> MlxdError:
    error = BreakerOpen(
        f"{_failed(slot)}; the next probe is in {spoken(slot.wait)}. {_what_to_do(slot)}",
        retry_after=slot.wait,
        policy=policies.line("supervision.worker.breaker.open"),
        numbers=_numbers(slot),
        would_pass=_served_again(slot),
    )
    return _with_cause(error, slot, policies)


def _quarantined(slot: Slot, policies: PolicySet) -> MlxdError:
    error = ModelQuarantined(
        f"{_failed(slot)}; it is quarantined for {spoken(slot.wait)}. {_cure(slot)}",
        retry_after=slot.wait,
        policy=policies.line("supervision.worker.breaker.quarantine"),
        numbers=_numbers(slot),
        would_pass=_mended(slot),
    )
    return _with_cause(error, slot, policies)


def _with_cause(error: MlxdError, slot: Slot, policies: PolicySet) -> MlxdError:
    """The model's own setting is named, where that is what its worker fails by: an edit of it has
    the model tried at once.
    """
    if slot.final is not None and slot.final.setting:
        blame(error, slot.final.setting, slot.card, policies)
    return error


def _numbers(slot: Slot) -> dict[str, float | str]:
    return {"failures": slot.failures, "next_start_seconds": round(slot.wait)}


def _served_again(slot: Slot) -> str:
    return f"the same request once model '{slot.name}' serves again"


def _mended(slot: Slot) -> str:
    return f"the same request once the cause is mended and model '{slot.name}' was reset"


def _failed(slot: Slot) -> str:
    times = f" {slot.failures} times in a row" if slot.failures > 1 else ""
    return f"the engine of model '{slot.name}' failed{times}, the last time with: {slot.reason}"


def _what_to_do(slot: Slot) -> str:
    return f"`mlxd models reset {slot.name}` has it tried at once"


def _cure(slot: Slot) -> str:
    return f"When its cause is mended: `mlxd models reset {slot.name}`"


def spoken(seconds: float) -> str:
    """Whole seconds, or minutes where those are many."""
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"
