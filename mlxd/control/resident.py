"""One model in memory, and what is remembered of it there."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from enum import IntEnum

from mlxd.control.model_settings import settings_for, ttl_for
from mlxd.control.worker import Worker
from mlxd.core.errors import MlxdError
from mlxd.core.models import ModelCard, ModelSpec
from mlxd.ipc import messages as ipc
from mlxd.policy.policy_set import PolicySet


class Evicts(IntEnum):
    """Who may leave memory for a load: nobody, what policy does not preload, whatever is idle.

    The first does not wait for room, the second only where it is known for how long; the third
    waits if policy says so. Of several who wait for one load, the one who may evict most counts.
    """

    NOBODY = 0
    UNLISTED = 1
    IDLE = 2


@dataclass(frozen=True, slots=True)
class Load:
    """How a model came into memory."""

    room_seconds: float
    """How long it waited before: for a start that was allowed, its turn, and room."""
    seconds: float
    """How long the load itself took."""
    put_off: MlxdError | None
    """Why it waited at first; None: it did not."""
    evicted: tuple[str, ...]
    """Who had to leave for it."""
    spare: bool = False
    """Its process was ready before."""


@dataclass(slots=True, eq=False)
class Resident:
    """One model that is in memory, or on its way there."""

    card: ModelCard
    ttl: float
    """Seconds that policy lets it idle; inf for ever."""
    asked: float | None = None
    """Seconds that a client asked it to stay after a use; it goes before policy."""
    leases: int = 0
    use_count: int = 0
    last_used: float = 0.0
    last_used_wall: float = 0.0
    loaded_at: float = -math.inf
    load_seconds: float = 0.0
    loading: asyncio.Task[None] | None = None
    evicts: Evicts = Evicts.NOBODY
    """What its load may evict."""
    waiting: int = 0
    """How many wait for its worker."""
    waits: MlxdError | None = None
    """Why its load waits for room; what those who wait are told when their time is over."""
    put_off: MlxdError | None = None
    """Why the present load waits, or did at first."""
    evicted: tuple[str, ...] = ()
    """Who has left for the present load."""
    load: Load | None = None
    """The last one that came to its end."""
    short_since: float | None = None
    """When its load was first found not to fit with everything else gone."""
    reserved: bool = False
    """Room has been made for it and it is about to take it."""
    budget: ipc.Budget = ipc.Budget(0, 0, 0)  # noqa: RUF009  # never changes
    """What it is promised, from the moment that it is reserved."""
    grown: int = 0
    """Bytes that it had when it last asked for more and got it at once; 0: it never did."""
    grown_at: float = -math.inf
    ahead: bool = False
    """It was promised that before it asked, and has not told since what it took."""
    remains: int | None = None
    """Set where its worker died of itself: what that held, as long as it is not seen to be free
    again, then 0. Those who have leased it keep its place for the next one.
    """
    deaths: int = 0
    """How often a worker of it died of itself."""
    worker: Worker | None = None
    """The last that was loaded."""
    needs: dict[int, ipc.Need] = field(default_factory=dict)
    """By request, what there was no room for; each is answered once there is, or cannot be."""
    retired: bool = False
    """No name leads to it any more: it goes as soon as nothing uses it."""
    successor: ModelSpec | None = None
    """Where all its names lead now: for that it goes as soon as nothing uses it."""
    expiry: asyncio.TimerHandle | None = None
    expires_wall: float = math.inf
    turn: int = 0
    """Counts its changes between in use and idle: an unload that was decided in an earlier one is
    void."""

    @property
    def spec(self) -> ModelSpec:
        return self.card.spec

    def disarm(self) -> None:
        """Forget when it was to go; an unload that was decided is void."""
        self.turn += 1
        if self.expiry is not None:
            self.expiry.cancel()
            self.expiry = None

    @property
    def in_use(self) -> bool:
        """Leased or loading: never evicted."""
        return self.leases > 0 or self.reserved

    @property
    def keep_alive(self) -> float:
        """Seconds it stays after its last use; inf for ever."""
        return self.ttl if self.asked is None else self.asked

    @property
    def leaving(self) -> bool:
        """A client had it unloaded; it ends with its last use."""
        return self.asked is not None and self.asked <= 0


def ttl_of(card: ModelCard, policies: PolicySet) -> float:
    """Seconds that policy lets this model idle."""
    return float(ttl_for(settings_for(card, policies.models), policies.models))
