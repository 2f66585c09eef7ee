"""A sliding window per client. It holds counts, not policy: the quota comes with each question."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Quota:
    """`requests` in any `window` seconds; at most `max_keys` clients are remembered."""

    requests: int
    window: float
    max_keys: int = 100_000


class SlidingWindow:
    """The times of each client's counted requests. Exact: no bucket edges to burst across."""

    def __init__(self) -> None:
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._times)

    def take(self, key: str, quota: Quota, now: float) -> float | None:
        """Count one request; or, if the quota is used up, the seconds until one would pass."""
        times = self._recent(key, quota, now)
        if len(times) >= quota.requests:
            return times[len(times) - quota.requests] + quota.window - now
        times.append(now)
        self._times[key] = times
        self._times.move_to_end(key)
        while len(self._times) > quota.max_keys:
            self._times.popitem(last=False)
        return None

    def refund(self, key: str, taken_at: float) -> None:
        """Uncount a request counted at `taken_at`, if it is still remembered."""
        times = self._times.get(key)
        if times is not None and taken_at in times:
            times.remove(taken_at)

    def remaining(self, key: str, quota: Quota, now: float) -> tuple[int, float]:
        """Requests left, and the seconds until there is one more (0 when none is counted)."""
        times = self._recent(key, quota, now)
        left = max(0, quota.requests - len(times))
        return left, (times[0] + quota.window - now if times else 0.0)

    def _recent(self, key: str, quota: Quota, now: float) -> deque[float]:
        times = self._times.get(key)
        if times is None:
            return deque()
        while times and times[0] <= now - quota.window:
            times.popleft()
        return times
