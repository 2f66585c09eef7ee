"""Where clients connect: one address, and after a change of it for a while the one before too.

The new socket is bound and serving before the policies that name it are in force, so that a change
that cannot be had changes nothing. The old one keeps accepting for `server.listen.linger`; then its
idle connections are closed, and those with a request are after its answer.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from mlxd.core.clock import Clock, within
from mlxd.core.instance import authority
from mlxd.core.threads import Threads
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.schema.server import Listen
from mlxd.policy.store import Prepared, PrepareFailed
from mlxd.server.accepting import Acceptor
from mlxd.server.connection import Connection
from mlxd.server.connections import GuardedServer
from mlxd.server.port import Bound, PortTaken, bind, resolve

log = logging.getLogger(__name__)

_SHUTDOWN_SECONDS = 0.5
_BIND_SECONDS = 10.0
_FEW = 16
"""Connections."""
_PARTING_SECONDS = 0.02
"""For a client to hear that an idle connection ends, before it is closed."""

Moved = Callable[[str, int], None]


@dataclass(slots=True, eq=False)
class Door:
    """One listening socket, and the connections that came in by it."""

    host: str
    """As policy names it."""
    sock: socket.socket
    shared: bool = False
    """A service manager has the socket too."""
    acceptor: Acceptor | None = None
    connections: list[Connection] = field(default_factory=list)
    """Some of them may be over: see `take`."""
    leaving: asyncio.TimerHandle | None = None
    """Set while it only waits for its clients to go elsewhere."""
    shut: bool = False
    """Nobody is accepted any more."""

    _open: int = 0
    """Connections that were not over when last somebody looked."""

    def take(self, connection: Connection) -> None:
        """One more. Those that are over are forgotten when they may be half of them: looking at all
        for each new one would cost much in a flood of them.
        """
        if len(self.connections) > 2 * self._open + _FEW:
            self.connections = [known for known in self.connections if known.open]
            self._open = len(self.connections)
        self.connections.append(connection)

    def listen(self, backlog: int) -> None:
        if self.sock.fileno() >= 0:  # the daemon has not begun to stop
            self.sock.listen(backlog)

    @property
    def address(self) -> tuple[str, int]:
        """As the system has it: a name is resolved, port 0 is a number."""
        host, port = self.sock.getsockname()[:2]
        return host, port

    def __str__(self) -> str:
        return authority(*self.address)


class Listener:
    """The server's addresses. An applier: a changed host, port or backlog is prepared here."""

    def __init__(self, server: GuardedServer, clock: Clock, moved: Moved) -> None:
        self._server = server
        self._clock = clock
        self._moved = moved
        self._threads = Threads("addresses")
        self._doors: list[Door] = []
        self._current: Door | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def addresses(self) -> list[str]:
        """Everything that accepts connections now, the present one first."""
        return [str(door) for door in sorted(self._doors, key=lambda d: d is not self._current)]

    @property
    def present_addresses(self) -> list[str]:
        """Those that clients are to use: without what lingers."""
        going = [str(door) for door in self._doors if door.leaving is not None]
        return [address for address in self.addresses if address not in going]

    @property
    def answering(self) -> int:
        """Connections on which an answer is under way, or not wholly taken by its client."""
        return self._server.answering

    @property
    def expecting(self) -> int:
        """Connections on which a request may be on its way."""
        return self._server.expecting

    @property
    def present(self) -> tuple[socket.AddressFamily, Any] | None:
        """The family and address that clients are to connect to; None while none are wanted.

        Any thread may ask.
        """
        door = self._current
        try:
            return (door.sock.family, door.sock.getsockname()) if door is not None else None
        except OSError:  # closed meanwhile
            return None

    @property
    def taken(self) -> tuple[int, int]:
        """Connections that were accepted there, and how often nobody was left who waited. Any
        thread may ask.
        """
        door = self._current
        acceptor = door.acceptor if door is not None else None
        return (acceptor.taken, acceptor.emptied) if acceptor is not None else (0, 0)

    def open(self, bound: Bound, listen: Listen) -> None:
        """Serve on bound sockets."""
        doors = [
            self._serve(Door(listen.host, sock, bound.shared), listen.backlog)
            for sock in bound.socks
        ]
        self._current = doors[0]

    async def prepare(self, old: PolicySet, new: PolicySet) -> Prepared:
        """Bind and serve on what `new` names. Raises PrepareFailed; then nothing has changed."""
        was, wanted = old.server.listen, new.server.listen
        current = self._current
        if current is None or (was.host, was.port, was.backlog) == (
            wanted.host, wanted.port, wanted.backlog,
        ):  # fmt: skip
            return _Stay()
        if (was.host, was.port) == (wanted.host, wanted.port):
            present = [door for door in self._doors if door.leaving is None]
            return _Backlog(present, was.backlog, wanted.backlog)
        try:
            async with within(self._clock, _BIND_SECONDS):
                return await self._move(current, wanted)
        except PortTaken as taken:
            raise PrepareFailed("server.listen.port", f"{taken} is taken by another") from taken
        except OSError as error:
            raise PrepareFailed(
                "server.listen.host" if was.host != wanted.host else "server.listen.port",
                f"cannot listen on {authority(wanted.host, wanted.port)}: "
                f"{error.strerror or 'the name cannot be looked up in time'}",
            ) from error

    async def _move(self, current: Door, wanted: Listen) -> Prepared:
        """Raises PortTaken, OSError. Looking names up may take long, so it is done aside."""
        address = (await self._threads.run(resolve, wanted.host, wanted.port))[-1][:2]
        known = next((door for door in self._doors if door.address == address), None)
        if known is not None:
            return _Move(self, current, known, wanted, opened=False)
        own = [door.sock for door in self._doors]
        sock = await self._threads.run(bind, wanted.host, wanted.port, own)
        if self._current is not current:  # the daemon has begun to stop
            sock.close()
            return _Stay()
        door = self._serve(Door(wanted.host, sock), wanted.backlog)
        return _Move(self, current, door, wanted, opened=True)

    async def stop_accepting(self) -> None:
        """New connections are refused from now on, or wait for the next daemon; those that are
        open go on.
        """
        self._current = None
        doors = list(self._doors)
        for door in doors:
            for connection in door.connections:
                connection.leaving = True
            self._shut(door)
        for door in doors:
            if door.acceptor is not None:
                await door.acceptor.settled()

    async def close(self) -> None:
        """End every connection, whatever it is doing."""
        await self.stop_accepting()
        if self._server.part():
            await asyncio.sleep(_PARTING_SECONDS)
        self._server.pre_shutdown()
        await self._server.shutdown(_SHUTDOWN_SECONDS)

    def turn_to(self, door: Door, host: str, linger: float) -> None:
        """`door` is the one from here on; the one before lingers. Not once the daemon stops."""
        if door not in self._doors:
            return
        before, self._current = self._current, door
        door.host = host
        self.keep(door)
        if before is not None and before is not door and before in self._doors:
            self.leave(before, linger)
        self._moved(host, door.address[1])

    def keep(self, door: Door) -> None:
        """It is not to go after all."""
        if door.leaving is not None:
            door.leaving.cancel()
            door.leaving = None
        for connection in door.connections:
            connection.leaving = connection.scarce

    def _serve(self, door: Door, backlog: int) -> Door:
        door.acceptor = Acceptor(
            door.sock, partial(self._connection, door), self._server.no_room,
            refusal=self._server.refusal, shared=door.shared,
        )  # fmt: skip
        door.acceptor.start(backlog)
        self._doors.append(door)
        return door

    def _connection(self, door: Door, scarce: bool) -> Connection:
        connection = self._server.connection(scarce=scarce)
        connection.leaving = scarce or door.leaving is not None or door.shut
        door.take(connection)
        return connection

    def leave(self, door: Door, linger: float) -> None:
        """From now on its answers say `Connection: close`; it goes after `linger` seconds."""
        loop = asyncio.get_running_loop()
        door.leaving = loop.call_later(linger, self.retire, door)
        for connection in door.connections:
            connection.leaving = True
        log.info("%s accepts connections for %g more seconds", door, linger)

    def retire(self, door: Door) -> None:
        """Stop accepting there at once; its connections end with their answers."""
        if door not in self._doors:
            return
        name = str(door)
        self._shut(door)
        self._own(self._close_connections(door))
        log.info("%s accepts no connections any more", name)

    async def _close_connections(self, door: Door) -> None:
        await asyncio.sleep(0)  # as in close()
        for connection in door.connections:
            connection.leave()
        door.connections.clear()

    def _shut(self, door: Door) -> None:
        door.shut = True
        if door.leaving is not None:
            door.leaving.cancel()
        if door.acceptor is not None:
            door.acceptor.close()
        self._doors.remove(door)

    def _own(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Stay:
    """Nothing to do."""

    def commit(self) -> None:
        pass

    def undo(self) -> None:
        pass


class _Backlog:
    """Another length for the kernel's queues."""

    def __init__(self, doors: Sequence[Door], old: int, new: int) -> None:
        self._doors = doors
        self._old = old
        self._new = new

    def commit(self) -> None:
        self._listen(self._new)

    def undo(self) -> None:
        self._listen(self._old)

    def _listen(self, backlog: int) -> None:
        for door in self._doors:
            door.listen(backlog)


class _Move:
    """Another address, which accepts connections already."""

    def __init__(
        self, listener: Listener, old: Door, new: Door, listen: Listen, *, opened: bool
    ) -> None:
        self._listener = listener
        self._old = old
        self._old_host = old.host
        self._new = new
        self._listen = listen
        self._opened = opened
        self._committed = False
        listener.keep(new)

    def commit(self) -> None:
        self._committed = True
        if not self._opened:  # it may have lingered with another
            self._new.listen(self._listen.backlog)
        self._listener.turn_to(self._new, self._listen.host, float(self._listen.linger))

    def undo(self) -> None:
        if self._committed:
            self._listener.turn_to(self._old, self._old_host, float(self._listen.linger))
        if self._opened:
            self._listener.retire(self._new)
        elif not self._committed and self._new is not self._old:
            self._listener.leave(self._new, float(self._listen.linger))
