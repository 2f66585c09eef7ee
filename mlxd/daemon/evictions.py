"""Evictions as events: who had to leave memory for whom, by which numbers and which policy."""

from __future__ import annotations

from mlxd.control.guard import Guard
from mlxd.control.judgement import Cause
from mlxd.core.sizes import spoken
from mlxd.telemetry.events import Events
from mlxd.telemetry.metrics import Metrics


class Evictions:
    """Records `evict`, and counts."""

    def __init__(self, events: Events, metrics: Metrics, guard: Guard) -> None:
        self._events = events
        self._metrics = metrics
        self._guard = guard

    def add(self, model: str, size: int, cause: Cause) -> None:
        """One that is gone, and held `size` bytes. What a watermark has dropped is counted where
        that is decided.
        """
        line = cause.policy
        if cause.reason == "watermark":
            line = self._guard.line
        else:
            self._metrics.evicted(cause.reason)
        data = {
            "model": model, "reason": cause.reason, "bytes": size,
            "for": cause.wanted_by or None,
            "needed": cause.needed or None,
            "available": cause.available if cause.needed else None,
            "policy": line.key if line is not None else None,
            "place": line.place if line is not None else None,
        }  # fmt: skip
        words = f"{model} had to leave memory: {_words(cause)}"
        self._events.record("evict", words if line is None else f"{words} ({line})", data)


def _words(cause: Cause) -> str:
    words = f"{cause.reason} of {cause.wanted_by}" if cause.wanted_by else cause.reason
    if not cause.needed:
        return words
    return f"{words}, which needs {spoken(cause.needed)}; {spoken(cause.available)} are available"
