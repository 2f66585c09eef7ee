"""The hot path: one token's record, from event to bytes."""

from __future__ import annotations

import time

from mlxd.core.events import TextDelta
from tests.support.pace import slowness

ROUNDS = 2000


def test_a_token_costs_next_to_nothing(spoken) -> None:
    """About 1 microsecond on a free core; the bound leaves room for a busy machine."""
    encoder = spoken.codec.encoder(spoken.call())
    burst = [TextDelta(" word")]
    spent = []
    for _ in range(10):
        begin = time.process_time()
        for number in range(ROUNDS):
            encoder.feed(burst, 1_700_000_000 + number / 1000)
        spent.append(time.process_time() - begin)
    assert min(spent) / ROUNDS < 6e-6 * slowness()
