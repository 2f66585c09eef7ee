"""How fast this machine is, for the few tests that bound CPU time."""

from __future__ import annotations

import time
from functools import cache

_ROUNDS = 100_000
_REFERENCE_SECONDS = 0.0145
"""What the rounds took on the machine that the bounds were set on."""


@cache
def slowness() -> float:
    """How many times as much CPU time this machine needs; never below 1."""
    return max(1.0, min(_spent() for _ in range(7)) / _REFERENCE_SECONDS)


def _spent() -> float:
    begin = time.process_time()
    found = {0: b""}
    for number in range(_ROUNDS):
        found[number & 1023] = b"%d" % number
    return time.process_time() - begin
