"""Weighted fair queueing between clients, by what their requests cost in tokens.

Each client has a virtual time: the tokens that it was given, over its weight. The one whose next
request would end first in virtual time goes first. A request is charged what it is expected to
take, and when it ends what it has taken, whatever was expected.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from mlxd.control.place import Place

_MOST_IDLE = 10_000
"""Clients that are remembered for what they took, while others wait."""


@dataclass(slots=True, eq=False)
class _Client:
    """One that has something there, or had just now."""

    weight: int
    time: float
    """Its virtual time: all that it was charged."""
    tail: float = 0.0
    """The virtual time at which its last waiting request would end."""
    expected: float = 0.0
    """What of `time` is charged for requests that run, and so may turn out otherwise."""
    running: int = 0
    waiting: dict[Place, None] = field(default_factory=dict)


class FairQueue:
    """Requests that wait, in the order in which they would go, and those that run.

    Who was idle starts at the present virtual time: what it did not use is not saved up for it,
    and what it took beyond the present counts against it as long as others wait.
    """

    def __init__(self) -> None:
        self._clients: dict[str, _Client] = {}
        self._idle: dict[str, _Client] = {}
        """Those of them that have nothing there, the longest idle first."""
        self._order: list[tuple[float, int, Place]] = []
        self._stale = False
        """Virtual times have changed: `_order` is to be made anew."""
        self._count = 0
        self._now = 0.0
        """The present virtual time; it never goes back."""
        self._weights = 0
        """Of all that are not idle."""

    def __len__(self) -> int:
        """Those that wait."""
        return self._count

    def __iter__(self) -> Iterator[Place]:
        """Those that wait, the next first."""
        self._refresh()
        return (place for _, _, place in self._order)

    def rank(self, place: Place) -> int:
        """How many are before one that waits."""
        self._refresh()
        return bisect_left(self._order, (place.finish, place.number))

    def add(self, place: Place, weight: int) -> None:
        """It begins to wait."""
        client = self._active(place.client, weight)
        if not client.waiting:
            client.tail = client.time = max(client.time, self._now)
        client.tail += place.cost / client.weight
        place.finish = client.tail
        client.waiting[place] = None
        self._count += 1
        if not self._stale:
            insort(self._order, (place.finish, place.number, place))

    def remove(self, place: Place) -> None:
        """It waits no longer, and has got nothing."""
        client = self._clients[place.client]
        is_last = place.finish == client.tail
        self._take_out(client, place)
        if is_last:
            client.tail -= place.cost / client.weight
        elif client.waiting:
            self._stale = True
        self._rest(place.client, client)

    def start(self, place: Place, weight: int) -> None:
        """It runs from now on, whether it has waited or not."""
        client = self._active(place.client, weight)
        if place in client.waiting:
            in_turn = next(iter(client.waiting)) is place
            self._take_out(client, place)
            self._stale = self._stale or (not in_turn and bool(client.waiting))
        elif not client.waiting:
            client.time = max(client.time, self._now)
        else:
            self._stale = True
        self._now = max(self._now, client.time - client.expected)
        place.charged = place.cost / client.weight
        client.time += place.charged
        client.expected += place.charged
        client.running += 1
        self._forgive()

    def end(self, place: Place, tokens: float | None) -> None:
        """It has run. `tokens`: what it took; None: as expected."""
        client = self._clients[place.client]
        took = place.cost if tokens is None else tokens
        charge = place.charged * took / place.cost
        client.time += charge - place.charged
        client.expected -= place.charged
        client.running -= 1
        if client.waiting and charge != place.charged:
            self._stale = True
        self._now += took / self._weights
        self._rest(place.client, client)

    def reweigh(self, weight_of: Callable[[Place], int]) -> None:
        """Weights and limits may have changed. Whoever was held back by a limit until now gets
        nothing for that.
        """
        for client in self._clients.values():
            first = next(iter(client.waiting), None)
            if first is not None:
                self._weights -= client.weight
                client.weight = weight_of(first)
                self._weights += client.weight
                client.time = max(client.time, self._now - first.cost / client.weight)
        self._stale = True

    def _active(self, name: str, weight: int) -> _Client:
        client = self._clients.get(name)
        if client is None:
            client = self._clients[name] = _Client(weight, self._now)
            self._weights += weight
        elif self._idle.pop(name, None) is not None:
            client.weight, client.expected = weight, 0.0
            self._weights += weight
        elif not client.waiting:  # with those that do, `reweigh` sees to it
            self._weights += weight - client.weight
            client.weight = weight
        return client

    def _take_out(self, client: _Client, place: Place) -> None:
        del client.waiting[place]
        self._count -= 1
        if not self._stale:
            del self._order[bisect_left(self._order, (place.finish, place.number))]

    def _rest(self, name: str, client: _Client) -> None:
        """It may have nothing there any more."""
        if not client.running and not client.waiting:
            self._weights -= client.weight
            if client.time > self._now:
                self._idle[name] = client
            else:
                del self._clients[name]
        self._forgive()

    def _forgive(self) -> None:
        """While nobody waits, what a client takes is taken from nobody."""
        most = _MOST_IDLE if self._count else 0
        while len(self._idle) > most:
            name = next(iter(self._idle))
            del self._idle[name], self._clients[name]

    def _refresh(self) -> None:
        if not self._stale:
            return
        self._order = []
        for client in self._clients.values():
            client.tail = client.time
            for place in client.waiting:
                client.tail += place.cost / client.weight
                place.finish = client.tail
                self._order.append((place.finish, place.number, place))
        self._order.sort()
        self._stale = False
