"""Refused requests as events: each of a few, the count of many.

A flood of refusals must not push everything else out of the list. Of each code the first few in a
second are told one by one, the rest by one event at its end; while the flood lasts such an end
comes ever more rarely, down to every half minute.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from mlxd.core.errors import MlxdError
from mlxd.telemetry.events import Events

EACH = 3
"""Refusals with one code that are told one by one, within `_SECONDS`."""
_SECONDS = 1.0
_MOST_SECONDS = 30.0


class Rejections:
    """Records `reject`."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._floods: dict[str, _Flood] = {}

    def add(
        self, error: MlxdError, status: int, *, model: str, client: str, count: int = 1
    ) -> None:
        """One refusal, or so many that are alike. Called on the event loop."""
        data = {
            "code": error.code,
            "status": status,
            "model": model,
            "client": client,
            "policy": error.policy.key if error.policy is not None else None,
            "place": error.policy.place if error.policy is not None else None,
            "numbers": dict(error.numbers),
            "would_pass": error.would_pass or None,
            "retry_after": None if error.retry_after is None else round(error.retry_after, 1),
        }
        flood = self._floods.get(error.code)
        if flood is None:
            flood = self._floods[error.code] = _Flood(self._arm(error.code, _SECONDS))
        if flood.told < EACH and count == 1:
            flood.told += 1
            words = f"refused with {status} {error.code}"
            words += "" if error.quotes else f": {error.message}"
            self._events.record("reject", words, data | {"count": 1})
        else:
            flood.add(data, count)

    def close(self) -> None:
        """Tell at once what is still to be told."""
        for flood in self._floods.values():
            flood.timer.cancel()
            self._tell(flood)
        self._floods.clear()

    def _arm(self, code: str, seconds: float) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(seconds, self._look, code)

    def _look(self, code: str) -> None:
        """The end of a flood's time."""
        flood = self._floods[code]
        if not flood.count:
            del self._floods[code]
            return
        lasts = flood.count > EACH
        self._tell(flood)
        flood.seconds = min(2 * flood.seconds, _MOST_SECONDS) if lasts else _SECONDS
        flood.timer = self._arm(code, flood.seconds)

    def _tell(self, flood: _Flood) -> None:
        if flood.data is not None:
            count, data = flood.count, flood.data
            words = f"{count} more refused with {data['status']} {data['code']}"
            self._events.record("reject", words, data | {"count": count})
        flood.count, flood.data = 0, None


@dataclass(slots=True)
class _Flood:
    """Refusals with one code that come quickly."""

    timer: asyncio.TimerHandle
    seconds: float = _SECONDS
    told: int = 0
    count: int = 0
    """Refusals that are to be told together."""
    data: dict[str, Any] | None = None
    """Of them; null where they differ."""

    def add(self, data: dict[str, Any], count: int) -> None:
        self.count += count
        if self.data is None:
            self.data = data
        else:
            self.data = {
                key: value if value == data[key] else None for key, value in self.data.items()
            }
