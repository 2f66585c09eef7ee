"""The walls before a request exists: header timer, idle timer, connection limits.

aiohttp times neither headers nor bodies. Here one sweep over all connections, four times a second,
ends those that keep a request line or a header unfinished, and those idle beyond keep-alive. The
limits are read at each sweep, so an edit holds for connections that are already open. It also ends
those whose client reads nothing, or hardly anything, of what it is sent. Where all are in use, one
that is slow or idle gives way to a new one: see giving_way.py.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from itertools import islice

from aiohttp import web

from mlxd.core.clock import Clock
from mlxd.policy.load import load
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.store import PolicyStore
from mlxd.server.addresses import Addresses
from mlxd.server.connection import Answers, Connection
from mlxd.server.farewells import Farewells, no_file, too_many, too_many_of_one
from mlxd.server.forwarded import client_at
from mlxd.server.giving_way import GivingWay

log = logging.getLogger(__name__)

_AT_ONCE = 16
"""Connections that are looked at before others have their turn: the system is asked of each."""
SWEEP_SECONDS = 0.25
LINGER_SECONDS = 1.0
"""For the rest of a body that is refused; without any, the refusal could be lost to a reset."""
_QUIET_SECONDS = 60.0
"""Between two words about a shortage."""
_NEVER = 10.0 * 365 * 86400

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class GuardedServer(web.Server):
    """aiohttp's server, with connections that are timed and counted."""

    def __init__(
        self,
        handler: Handler,
        policies: PolicyStore,
        clock: Clock,
        *,
        limited: bool = True,
        addresses: Addresses | None = None,
    ) -> None:
        super().__init__(handler, handler_cancellation=True)
        self._policies = policies
        self._clock = clock
        self._limited = limited
        self._addresses = addresses
        self.refused = 0
        """Connections beyond server.http.max_connections."""
        self.slow = 0
        """Those whose first line or header did not come within server.http.header_timeout."""
        self.farewells = Farewells()
        self.answers: Answers | None = None
        """For connections that come after it is set."""
        self._defaults = load()
        """What holds where policy does not: no edit can lock the operator out."""
        self._sweeper: asyncio.Handle | None = None
        self._giving_way = GivingWay(self._known)
        self._quiet_until = clock.monotonic()

    def connection(self, *, scarce: bool = False) -> Connection:
        """The protocol of one new connection."""
        policies = self._in_force
        http = policies.server.http
        connection = Connection(
            self,
            self._clock,
            policies,
            loop=self._loop,
            keepalive_timeout=_NEVER,
            access_log=None,
            lingering_time=LINGER_SECONDS,
            max_line_size=int(http.max_header_bytes),
            max_field_size=int(http.max_header_bytes),
            max_headers=http.max_headers,
            tcp_keepalive=False,  # silence.py asks for it; aiohttp fails where that is refused
            auto_decompress=False,  # it goes on inflating what was refused: see inflating.py
        )
        connection.scarce = scarce
        return connection

    @property
    def _in_force(self) -> PolicySet:
        return self._policies.current if self._limited else self._defaults

    @property
    def generation(self) -> int:
        """Of the policies in force."""
        return self._policies.current.generation

    @property
    def answering(self) -> int:
        """Connections on which an answer is under way, or not wholly taken by its client."""
        return sum(connection.answering for connection in self._known())

    @property
    def expecting(self) -> int:
        """Connections on which a request may be on its way."""
        return sum(connection.expecting for connection in self._known())

    def part(self) -> int:
        """Tell all whose connections are idle that they end; returns how many there are."""
        return sum(connection.part() for connection in self._known())

    def refusal(self, peer: str) -> bytes:
        """Why one more connection is one too many, beside those that there are; empty: it is none.

        Asked before anything is made of it; `enter` asks again of those that came together.
        """
        if not self._limited:
            return b""
        if self._is_full(len(self._connections)) and not self._giving_way.anybody(
            self._clock.monotonic()
        ):
            return self._too_many(peer)
        return self._share(peer)

    def no_room(self, peer: str) -> bytes:
        """The last words for one for whom there is no file."""
        return self.farewells.common(no_file, self._in_force, client_at(peer))

    def _too_many(self, peer: str) -> bytes:
        self.refused += 1
        return self.farewells.common(too_many, self._in_force, client_at(peer))

    def _is_full(self, others: int) -> bool:
        return others >= self._policies.current.server.http.max_connections

    def _share(self, peer: str) -> bytes:
        if self._addresses is not None and not self._addresses.has_room(peer):
            return self.farewells.common(too_many_of_one, self._in_force, client_at(peer))
        return b""

    def enter(self, peer: str) -> bytes:
        """One that is among them already is let in; or why not."""
        if not self._limited:
            return b""
        if self._is_full(len(self._connections) - 1) and not self.make_room():
            return self._too_many(peer)
        words = self._share(peer)
        if not words and self._addresses is not None:
            self._addresses.connect(peer)
        return words

    def leave(self, peer: str) -> None:
        """One is over that was let in."""
        if self._limited and self._addresses is not None:
            self._addresses.disconnect(peer)

    def make_room(self) -> bool:
        """Have one connection end that gives way; false if none does."""
        found = self._giving_way.next(self._clock.monotonic())
        if found is None:
            return False
        self._tell()
        found.give_way(self._policies.current)
        return True

    def _known(self) -> list[Connection]:
        return [one for one in self.connections if isinstance(one, Connection)]

    def _tell(self) -> None:
        now = self._clock.monotonic()
        if now >= self._quiet_until:
            self._quiet_until = now + _QUIET_SECONDS
            log.warning("all connections are in use: slow and idle ones give way to new ones")

    async def shutdown(self, timeout: float | None = None) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        self.farewells.close()
        await super().shutdown(timeout)

    def watch(self) -> None:
        """As long as there are connections; a daemon that nobody asks sleeps."""
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep)

    def _sweep(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        known: list[Connection] = []
        try:
            known = self._known()
        finally:
            self._look_on(iter(known))

    def _look_on(self, rest: Iterator[Connection]) -> None:
        """At some of them; before the next ones, those who ask are answered."""
        self._sweeper = None
        some = [*islice(rest, _AT_ONCE)]
        for connection in some:
            self._look_at(connection)
        if len(some) == _AT_ONCE:
            self._sweeper = self._loop.call_soon(self._look_on, rest)
        elif self._connections:
            self.watch()

    def _look_at(self, connection: Connection) -> None:
        policies = self._in_force
        now = self._clock.monotonic()
        try:
            connection.end_if_unread(now, float(policies.timeouts.client_write))
            farewell = connection.overdue(now, policies)
            if farewell is not None:
                self.slow += bool(farewell)
                connection.refuse(farewell)
        except Exception:  # the edge: the others are looked at all the same
            log.exception("a connection cannot be swept: a defect")
