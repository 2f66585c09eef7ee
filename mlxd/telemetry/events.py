"""What the daemon decided, most recent last: a bounded list that people and programs read."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mlxd.core.clock import Clock

KEPT = 500


@dataclass(frozen=True, slots=True)
class Event:
    """One decision. `type` is stable and snake_case, such as `policy_reload`."""

    id: int
    at: float
    """Seconds since the epoch."""
    type: str
    message: str
    data: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Events:
    """The last `KEPT` of them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._recent: deque[Event] = deque(maxlen=KEPT)
        self._last_id = 0

    def record(self, type: str, message: str, data: Mapping[str, Any] | None = None) -> Event:
        """Add one."""
        self._last_id += 1
        event = Event(self._last_id, self._clock.wall(), type, message, data or {})
        self._recent.append(event)
        return event

    def since(self, id: int = 0) -> list[Event]:
        """Those after event `id`, the oldest first; older than the last `KEPT` are forgotten."""
        return [event for event in self._recent if event.id > id]
