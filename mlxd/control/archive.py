"""Answers that clients may come back to, in memory: each with what was said before it.

Answers of one conversation share what they have in common, and it counts once. The oldest go first,
and for want of room the oldest of the client that takes the most; what a younger one goes on from
stays as long as that does.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from dataclasses import dataclass
from heapq import heapify, heapreplace

from mlxd.core.clock import Clock
from mlxd.policy.policy_set import PolicySet

_SWEEP_SECONDS = 60.0
_OVERHEAD = 1024
"""Bytes that one takes beside what it says."""


@dataclass(slots=True, eq=False)
class Kept:
    """One answer. Nothing of it changes but who holds it."""

    id: str
    owner: str
    """Nobody else is told of it."""
    response: bytes
    """As the client got it."""
    said: bytes
    """What the client had said in this turn."""
    before: Kept | None = None
    """The one that it goes on from."""
    since: float = 0.0
    """Seconds, on the archive's clock."""
    holders: int = 0
    """The archive, if it is listed there, and those that go on from it."""

    @property
    def size(self) -> int:
        return len(self.response) + len(self.said) + _OVERHEAD

    def conversation(self) -> list[Kept]:
        """It and all before it, the oldest first."""
        found: list[Kept] = []
        one: Kept | None = self
        while one is not None:
            found.append(one)
            one = one.before
        return found[::-1]


class Archive:
    """Bounded by `limits.responses`. For the event loop's thread."""

    def __init__(self, clock: Clock, policies: PolicySet) -> None:
        self._clock = clock
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        """By id, the oldest first."""
        self._own: dict[str, dict[str, Kept]] = {}
        """The same by owner; whoever has none is not there."""
        self._taken: Counter[str] = Counter()
        """Bytes by owner, of all that is held; whoever holds nothing is not there."""
        self._bytes = 0
        self._bounds = policies.limits.responses

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def bytes(self) -> int:
        """All that is held, listed or not."""
        return self._bytes

    def apply(self, policies: PolicySet) -> None:
        """Other bounds hold at once."""
        self._bounds = policies.limits.responses
        self.sweep()

    def keep(self, kept: Kept) -> None:
        """Until its time is over, or younger ones need its room: what alone is too large is not
        kept at all.
        """
        kept.since = self._clock.monotonic()
        self._kept[kept.id] = kept
        self._own.setdefault(kept.owner, {})[kept.id] = kept
        self._hold(kept)
        self.sweep()

    def get(self, id: str, owner: str) -> Kept | None:
        self.sweep()
        kept = self._kept.get(id)
        return kept if kept is not None and kept.owner == owner else None

    def remove(self, kept: Kept) -> None:
        """It cannot be asked for any more."""
        if self._kept.pop(kept.id, None) is None:
            return
        own = self._own[kept.owner]
        del own[kept.id]
        if not own:
            del self._own[kept.owner]
        self._let_go(kept)

    def sweep(self) -> None:
        """Remove what is too old, or too much."""
        while self._kept and self._is_over(oldest := next(iter(self._kept.values()))):
            self.remove(oldest)
        if self._bytes > self._bounds.max_bytes:
            self._make_room()

    async def run(self) -> None:
        """Sweep now and then: its time is over for what nobody asks for, too."""
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            self.sweep()

    def _is_over(self, oldest: Kept) -> bool:
        """Whether its time is, or it is one too many."""
        most = self._bounds.max_count if self._bounds.store != "off" else 0
        late = self._clock.monotonic() - oldest.since >= self._bounds.ttl
        return late or len(self._kept) > most

    def _make_room(self) -> None:
        """Ordered once, however many have to go: who is first there may have less by now."""
        most = [(-taken, owner) for owner, taken in self._taken.items()]
        heapify(most)
        while self._kept and self._bytes > self._bounds.max_bytes:
            taken, owner = most[0]
            if self._taken[owner] == -taken:
                self.remove(next(iter(self._own[owner].values())))
            heapreplace(most, (-self._taken[owner], owner))

    def _count(self, owner: str, size: int) -> None:
        self._bytes += size
        self._taken[owner] += size
        if not self._taken[owner]:
            del self._taken[owner]

    def _hold(self, kept: Kept) -> None:
        one: Kept | None = kept
        while one is not None:
            one.holders += 1
            if one.holders > 1:
                return
            self._count(one.owner, one.size)
            one = one.before

    def _let_go(self, kept: Kept) -> None:
        one: Kept | None = kept
        while one is not None:
            one.holders -= 1
            if one.holders:
                return
            self._count(one.owner, -one.size)
            one = one.before
