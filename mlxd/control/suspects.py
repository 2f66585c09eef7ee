"""Requests that workers died of: who is under suspicion, and who is refused for it. Pure.

Whatever ran when a worker died may have been the cause, and is a suspect. It runs alone until it
has come further than before; a death while it was alone leaves no doubt.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from mlxd.core.models import ModelCard
from mlxd.core.request import GenerationRequest, Sampling
from mlxd.policy.schema.supervision import Quarantine

KEPT = 1000
_DELIVERY: dict[str, Any] = {
    "stream": True, "logprobs": None, "keep_alive": None,
    "tell_context": False, "think_or_refuse": False, "priority": None, "user": "",
}  # fmt: skip
"""What of a request says only how its answer is delivered."""


@dataclass(frozen=True)
class Case:
    """One client's request to one model, with all that decides what the engine does."""

    client: str
    card: ModelCard
    request: GenerationRequest
    sampling: Sampling
    """Resolved; without a seed that the daemon draws."""

    @property
    def model(self) -> str:
        return self.card.name

    @cached_property
    def key(self) -> bytes:
        """Equal for equal requests, however they are delivered; nothing can be read from it."""
        request = replace(
            self.request, model="", sampling=self.sampling, fallback=Sampling(), **_DELIVERY
        )
        parts = (self.client, self.card.spec, request)
        return hashlib.sha256(repr(parts).encode()).digest()


@dataclass(slots=True)
class Suspect:
    """What is held against one request. Times are on the monotonic clock."""

    client: str
    model: str
    path: str
    since: float
    """When the last worker died of it."""
    until: float
    """When it is forgotten."""
    kills: int = 0
    quarantined: bool = False
    worker: int = 0
    """The last that died; it counts once, however many equal requests ran on it."""


class Suspects:
    """The last `KEPT`; those in quarantine are forgotten last."""

    def __init__(self) -> None:
        self._all: dict[bytes, Suspect] = {}

    def find(self, case: Case, now: float) -> Suspect | None:
        """What is held against a request, if anything is."""
        if not self._all:
            return None
        found = self._all.get(case.key)
        if found is not None and found.until <= now:
            del self._all[case.key]
            return None
        return found

    def accuse(
        self, case: Case, worker: int, quarantine: Quarantine, now: float, *, alone: bool
    ) -> Suspect:
        """A worker died while this ran on it; `alone`: and nothing else did."""
        found = self.find(case, now)
        if found is None:
            found = Suspect(case.client, case.model, case.card.path, now, now)
        if found.worker != worker:
            found.kills += 1
        found.worker, found.since, found.until = worker, now, now + float(quarantine.held)
        found.quarantined |= alone and found.kills >= quarantine.kills
        self._all.pop(case.key, None)
        self._make_room()
        self._all[case.key] = found
        return found

    def clear(self, case: Case) -> None:
        """It has come further than before, with nothing beside it: it was not the cause."""
        self._all.pop(case.key, None)

    def quarantined(self, now: float) -> list[Suspect]:
        """Those that are refused, the oldest first."""
        return [one for one in self._all.values() if one.quarantined and one.until > now]

    def reset(self, card: ModelCard) -> int:
        """Forget what is held against requests to a model; says how many were refused."""
        gone = [key for key, one in self._all.items() if one.path == card.path]
        return sum(self._all.pop(key).quarantined for key in gone)

    def _make_room(self) -> None:
        if len(self._all) < KEPT:
            return
        free = (key for key, one in self._all.items() if not one.quarantined)
        del self._all[next(free, next(iter(self._all)))]
