"""What one client address may hold of the daemon at one time, by `server.http.per_ip`: connections,
and behind a trusted proxy, whose connections are of many clients, requests.

All of them are counted, whatever policy says, so that an edit finds true counts. The tables hold
addresses that have something open: as many as there are connections, at most.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web

from mlxd.core.clock import Clock
from mlxd.core.counts import plural
from mlxd.core.errors import Overloaded
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.schema.server import is_loopback
from mlxd.policy.store import PolicyStore
from mlxd.server.forwarded import address_of, client_at, is_proxy

log = logging.getLogger(__name__)

AUTO = 64
"""Of an address that other machines have; this machine's own has no limit then."""
_OURS = frozenset((client_at(""), client_at("::1")))
_QUIET_SECONDS = 60.0
"""Between two words in the log about who is refused."""
_RETRY_SECONDS = 1.0


class Addresses:
    """Counts for one listener."""

    def __init__(self, policies: PolicyStore, clock: Clock) -> None:
        self._policies = policies
        self._clock = clock
        self._connections: Counter[str] = Counter()
        self._requests: Counter[str] = Counter()
        self._quiet_until = 0.0
        self.refused = 0
        """Connections and requests that were."""

    def __len__(self) -> int:
        return len(self._connections) + len(self._requests)

    def has_room(self, peer: str) -> bool:
        """For one more connection; who has none is refused, and counted as such."""
        policies, address = self._policies.current, client_at(peer)
        most = None if is_proxy(peer, policies) else most_of(address, policies)
        return self._within(self._connections[address], address, most)

    def connect(self, peer: str) -> None:
        """Count one more connection."""
        self._connections[client_at(peer)] += 1

    def disconnect(self, peer: str) -> None:
        """One that was counted is over."""
        _give_back(self._connections, client_at(peer))

    @contextmanager
    def asking(self, request: web.BaseRequest, policies: PolicySet) -> Iterator[None]:
        """Count a request while it is served, if it comes through a trusted proxy. Raises
        Overloaded.
        """
        address, peer = address_of(request, policies), request.remote or ""
        if not is_proxy(peer, policies) or address == client_at(peer):
            yield
            return
        most = most_of(address, policies)
        if not self._within(self._requests[address], address, most):
            raise Overloaded(
                "too many requests of this address are under way",
                retry_after=_RETRY_SECONDS,
                policy=policies.line("server.http.per_ip"),
                numbers={"max": most or 0},
                would_pass="the same request once another of them has ended",
            )
        self._requests[address] += 1
        try:
            yield
        finally:
            _give_back(self._requests, address)

    def _within(self, count: int, address: str, most: int | None) -> bool:
        if most is None or count < most:
            return True
        self.refused += 1
        self._tell(address, most)
        return False

    def _tell(self, address: str, most: int) -> None:
        now = self._clock.monotonic()
        if now >= self._quiet_until:
            self._quiet_until = now + _QUIET_SECONDS
            log.warning("%s has %s: more are refused", address, plural(most, "connection"))


def most_of(address: str, policies: PolicySet) -> int | None:
    """What an address may hold; None: any number."""
    most = policies.server.http.per_ip
    if most != "auto":
        return most
    return None if address in _OURS or is_loopback(address) else AUTO


def _give_back(counts: Counter[str], address: str) -> None:
    counts[address] -= 1
    if counts[address] <= 0:
        del counts[address]
