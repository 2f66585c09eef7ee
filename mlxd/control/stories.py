"""The stories of requests: those under way, and as many that have ended as policy says."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from heapq import nlargest
from itertools import chain
from operator import attrgetter

from mlxd.core.story import Story
from mlxd.policy.policy_set import PolicySet

_REFUSED = 400
"""The lowest status of a request that was not served."""
_came = attrgetter("came")


class Stories:
    """Bounded by `server.stories`. For the event loop's thread.

    A flood of refusals forgets its own beginning first: those who were served keep half the room.
    """

    def __init__(self, policies: PolicySet) -> None:
        self.on_end: list[Callable[[Story], None]] = []
        """Told of each request that ends; it must not take long."""
        self._most = policies.server.stories
        self._under_way: dict[Story, None] = {}
        self._served: deque[Story] = deque()
        self._refused: deque[Story] = deque()

    def begin(self, story: Story) -> None:
        """It is told from here on; `end` must follow."""
        self._under_way[story] = None

    def end(self, story: Story, status: int, code: str = "") -> None:
        """Of one that was begun; of any other nothing is kept."""
        if story not in self._under_way:
            return
        del self._under_way[story]
        story.ended, story.status, story.code = story.now, status, code
        served = story.leased is not None or (status < _REFUSED and not code)
        (self._served if served else self._refused).append(story)
        self._shrink()
        for tell in self.on_end:
            tell(story)

    def find(self, id: str) -> list[Story]:
        """Those of this id, which clients may give to several; the newest first."""
        found = [story for story in self._all() if story.id == id]
        return sorted(found, key=_came, reverse=True)

    def newest(self, count: int) -> list[Story]:
        """The last that came, the newest first."""
        return nlargest(count, self._all(), key=_came)

    def under_way(self) -> list[Story]:
        """Those that have not ended."""
        return list(self._under_way)

    def apply(self, new: PolicySet) -> None:
        self._most = new.server.stories
        self._shrink()

    def _all(self) -> Iterator[Story]:
        return chain(self._under_way, self._served, self._refused)

    def _shrink(self) -> None:
        while len(self._served) + len(self._refused) > self._most:
            crowded = 2 * len(self._refused) > self._most or not self._served
            (self._refused if crowded else self._served).popleft()
