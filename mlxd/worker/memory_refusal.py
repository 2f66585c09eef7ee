"""What a request is told that memory does not let into the engine."""

from __future__ import annotations

from mlxd.core.counts import plural
from mlxd.core.sizes import spoken
from mlxd.ipc.messages import Refused
from mlxd.worker.claim import Claim


def no_room(
    claim: Claim, needed: int, available: int, *, beside_others: bool, first: bool
) -> Refused:
    """Bytes, with all that is in the engine (`beside_others`: anything is) and, unless it is the
    `first`, waits before it.

    `timeouts.generation` bounds the wait: what runs when it begins has ended by then.
    """
    running = " beside what runs" if first else " beside what runs and waits before it"
    beside = running if beside_others else ""
    decided = None
    if beside_others:
        decided = "timeouts.generation" if claim.patient else "memory.reserve.when_full"
    return Refused(
        claim.id,
        "insufficient_memory",
        f"a prompt of {plural(claim.prompt, 'token')} and its answer need {spoken(needed)}"
        f" of memory{beside}, and {spoken(available)} are available for this model",
        policy_key=decided,
        needed_bytes=needed,
        available_bytes=available,
    )


def too_long(claim: Claim, needed: int, most: int, fitting: int) -> Refused:
    """It needs more by itself than there can ever be. `fitting`: tokens of prompt and answer that
    would fit.
    """
    return Refused(
        claim.id,
        "context_exceeded",
        f"{plural(claim.prompt, 'prompt token')} and {claim.reserved - claim.prompt} for the"
        f" answer need {spoken(needed)} of memory, {spoken(most)} at most are available for this"
        f" model: prompt and answer of {plural(fitting, 'token')} together would fit",
        param="messages",
        needed_bytes=needed,
        available_bytes=most,
        numbers={"prompt_tokens": claim.prompt, "fitting_tokens": fitting},
    )
