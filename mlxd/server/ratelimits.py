"""What a client has left, in headers: RateLimit and RateLimit-Policy, and each API's own.

The first two are lists of structured fields (draft-ietf-httpapi-ratelimit-headers, RFC 9651) with
an item for each rule. An API's own know one rule of a unit: the one that leaves least.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Literal
from urllib.parse import quote

from mlxd.control.rates import RateState
from mlxd.server.answers import iso

Api = Literal["openai", "anthropic", "ollama"]
_LARGEST = 10**15 - 1
"""Integer of a structured field."""
_PLAIN = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")
"""What a string of a structured field holds; the rest of a name, and `%`, is percent-encoded."""


def headers_of(states: Sequence[RateState], api: Api, wall: float) -> dict[str, str]:
    """`wall` is now, in seconds since the epoch. A state of no window is of a number of places, and
    says nothing of time.
    """
    if not states:
        return {}
    headers = {
        "RateLimit-Policy": ", ".join(map(_policy, states)),
        "RateLimit": ", ".join(map(_left, states)),
    }
    match api:
        case "openai":
            headers |= _openais(states)
        case "anthropic":
            headers |= _anthropics(states, wall)
        case "ollama":
            pass
    return headers


def _policy(state: RateState) -> str:
    item = f"{_string(state.name)};q={_integer(state.requests)}"
    if state.window:
        item += f";w={_integer(state.window)}"
    return item if state.unit == "requests" else f"{item};qu={_string(state.unit)}"


def _left(state: RateState) -> str:
    item = f"{_string(state.name)};r={_integer(state.remaining)}"
    return f"{item};t={_integer(state.reset)}" if state.window else item


def _openais(states: Sequence[RateState]) -> Iterator[tuple[str, str]]:
    for unit, state in _tightest(states):
        yield f"x-ratelimit-limit-{unit}", str(state.requests)
        yield f"x-ratelimit-remaining-{unit}", str(state.remaining)
        yield f"x-ratelimit-reset-{unit}", f"{_integer(state.reset)}s"


def _anthropics(states: Sequence[RateState], wall: float) -> Iterator[tuple[str, str]]:
    for unit, state in _tightest(states):
        yield f"anthropic-ratelimit-{unit}-limit", str(state.requests)
        yield f"anthropic-ratelimit-{unit}-remaining", str(state.remaining)
        yield f"anthropic-ratelimit-{unit}-reset", iso(math.ceil(wall + state.reset))


def _tightest(states: Sequence[RateState]) -> Iterator[tuple[str, RateState]]:
    """By unit, the one that leaves least; of several that leave as much, that for longest."""
    for unit in ("requests", "tokens"):
        of_unit = [state for state in states if state.unit == unit]
        if of_unit:
            yield unit, min(of_unit, key=lambda state: (state.remaining, -state.reset))


def _integer(number: float) -> int:
    """Upwards: never sooner than there is more."""
    return min(max(0, math.ceil(number)), _LARGEST)


@lru_cache(maxsize=256)
def _string(text: str) -> str:
    """Names of rules come again and again, on every refusal, too."""
    encoded = quote(text, safe=_PLAIN, errors="replace")
    return '"' + encoded.replace("\\", "\\\\").replace('"', '\\"') + '"'
