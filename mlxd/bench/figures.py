"""What the times of an answer's pieces come to. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median


@dataclass(frozen=True)
class Spread:
    """Over the streams of one load, in milliseconds. Gaps: 0 where there is none."""

    ttft_p50_ms: float
    ttft_p99_ms: float
    gap_p50_ms: float
    gap_p99_ms: float


def spread(times: Sequence[Sequence[float]]) -> Spread:
    """`times`: of each stream, the seconds at which its pieces came."""
    firsts = [stream[0] * 1e3 for stream in times]
    gaps = [(b - a) * 1e3 for stream in times for a, b in pairwise(stream)] or [0.0]
    return Spread(median(firsts), quantile(firsts, 0.99), median(gaps), quantile(gaps, 0.99))


def decode_rate(spans: Sequence[float], tokens: int) -> float:
    """Tokens per second of all streams together, each over its own span, which is the seconds from
    its first token to its last; 0: nothing took any time.
    """
    return sum((tokens - 1) / span for span in spans if span > 0)


def quantile(values: Sequence[float], q: float) -> float:
    """The smallest value that at least the share `q` of them does not exceed."""
    return sorted(values)[max(0, math.ceil(q * len(values)) - 1)]
