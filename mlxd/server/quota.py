"""What a client has left, and how busy mlxd is, in the headers of its answers and refusals.

RateLimit and RateLimit-Policy are of draft-ietf-httpapi-ratelimit-headers; each API has its own
beside them, which know one rule of a unit: the tightest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from aiohttp import web

from mlxd.control.rates import RateState
from mlxd.policy.load import PolicySet
from mlxd.server.answers import iso
from mlxd.server.edge import QUOTA, STORY, caller_of
from mlxd.server.errors import speaks_anthropic
from mlxd.server.parts import Parts
from mlxd.server.queue_report import load_headers, room

_PLAIN = frozenset(map(chr, range(0x20, 0x7F))) - {'"', "\\"}


def note_quota(request: web.BaseRequest, parts: Parts, policies: PolicySet) -> None:
    """Keep them for the answer to this request, whatever it will be."""
    story = request[STORY]
    states = parts.admission.rate_states(caller_of(request), policies, story.user)
    headers = dict(_as_lists(states, parts, policies))
    tightest = {state.unit: state for state in sorted(states, key=_looseness, reverse=True)}
    if speaks_anthropic(request):
        headers |= _anthropics(tightest, parts.clock.wall())
    elif request.path.startswith("/v1/"):
        headers |= _openais(tightest)
    request[QUOTA] = headers | load_headers(parts, story.priority)


def _looseness(state: RateState) -> float:
    """The share of the quota that is left."""
    return state.remaining / max(1, state.requests)


def _as_lists(
    states: Sequence[RateState], parts: Parts, policies: PolicySet
) -> Iterator[tuple[str, str]]:
    """One item for each rule, in the order of judgement, and one for the queue."""
    quotas, left = [], []
    for state in states:
        name, unit = _string(state.name), ""
        if state.unit != "requests":
            unit = f";qu={_string(state.unit)}"
        quotas.append(f"{name};q={state.requests};w={max(1, round(state.window))}{unit}")
        left.append(f"{name};r={state.remaining};t={_seconds(state.reset)}")
    if (queue := room(parts, policies)) is not None:
        quotas.append(f'"queue";q={queue.places};qu="concurrent-requests"')
        left.append(f'"queue";r={queue.free}')
    if quotas:
        yield "RateLimit-Policy", ", ".join(quotas)
        yield "RateLimit", ", ".join(left)


def _openais(tightest: dict[str, RateState]) -> Iterator[tuple[str, str]]:
    for unit, state in tightest.items():
        yield f"x-ratelimit-limit-{unit}", str(state.requests)
        yield f"x-ratelimit-remaining-{unit}", str(state.remaining)
        yield f"x-ratelimit-reset-{unit}", f"{_seconds(state.reset)}s"


def _anthropics(tightest: dict[str, RateState], wall: float) -> Iterator[tuple[str, str]]:
    for unit, state in tightest.items():
        start = f"anthropic-ratelimit-{unit}-"
        yield f"{start}limit", str(state.requests)
        yield f"{start}remaining", str(state.remaining)
        yield f"{start}reset", iso(round(wall) + _seconds(state.reset))


def _seconds(reset: float) -> int:
    """Never before there is more: who asks again then is served."""
    return max(0, math.ceil(reset))


def _string(name: str) -> str:
    """A structured field's: what it cannot hold is left out."""
    return '"' + "".join(character for character in name if character in _PLAIN) + '"'
