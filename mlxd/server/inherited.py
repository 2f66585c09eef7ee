"""Listeners that a service manager hands over: those that systemd or launchd calls `http`.

The manager keeps its own end of each, so whoever connects while no daemon runs waits for the next.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass

from mlxd.policy.schema.server import Listen

NAME = "http"
_FIRST = 3
"""systemd's files are numbered from here on."""
_MOST = 1024
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")

Activate = Callable[[str], Sequence[int]]
"""launchd's files of a socket, by its name in the job; none where there is no such socket. Raises
OSError.
"""


@dataclass(frozen=True, slots=True)
class Inherited:
    """What was handed over; nothing, to a daemon that was started by hand."""

    manager: str = ""
    socks: tuple[socket.socket, ...] = ()
    """Those to serve. The first is the one that policies are judged by: if other machines can reach
    any of them, they can reach that.
    """
    problem: str = ""
    """Why what is called `http` cannot be served; then there are no `socks`."""
    warnings: tuple[str, ...] = ()
    """What was handed over in vain."""

    @property
    def source(self) -> str:
        """As policies name it."""
        return f"socket {NAME} of {self.manager}"

    def addresses(self) -> list[tuple[str, int]]:
        """Of `socks`, in their order."""
        return [_address(sock) for sock in self.socks]

    def overrides(self) -> list[tuple[str, str, str]]:
        """(policy key, text, source): host and port are the socket's to say."""
        if not self.socks:
            return []
        host, port = _address(self.socks[0])
        return [
            ("server.listen.host", host, self.source),
            ("server.listen.port", str(port), self.source),
        ]

    def close(self) -> None:
        """They are not wanted. The manager's own ends stay as they are."""
        for sock in self.socks:
            sock.close()


def inherit(
    environ: MutableMapping[str, str], pid: int, activate: Activate | None = None
) -> Inherited:
    """What this process was handed. To be asked once: the variables that say so are removed, and
    no process that is started later gets any of the files.
    """
    said = {name: environ.pop(name, "") for name in _VARIABLES}
    if said["LISTEN_FDS"]:
        return _of_systemd(said, pid)
    if activate is None and sys.platform != "darwin":
        return Inherited()
    from mlxd.server.launchd import activated  # needs ctypes, which takes its time

    try:
        files = (activate or activated)(NAME)
    except OSError as error:
        return Inherited("launchd", problem=f"launchd keeps the socket {NAME}: {error.strerror}")
    return _taken("launchd", [(NAME, file) for file in files]) if files else Inherited()


def _of_systemd(said: Mapping[str, str], pid: int) -> Inherited:
    count, meant = said["LISTEN_FDS"], said["LISTEN_PID"]
    if meant != str(pid):
        words = f"sockets are handed to process {meant or '?'} and mlxd is {pid}: start it by exec"
        return Inherited("systemd", warnings=(words,))
    if not count.isdecimal() or int(count) > _MOST:
        words = f"LISTEN_FDS is {count[:20]!r}, which is no number of sockets"
        return Inherited("systemd", warnings=(words,))
    names = said["LISTEN_FDNAMES"].split(":") + [""] * int(count)
    return _taken("systemd", [(names[index], _FIRST + index) for index in range(int(count))])


def _taken(manager: str, files: Sequence[tuple[str, int]]) -> Inherited:
    """Keep those of our name, if all of them can be served; close the others."""
    ours = [file for name, file in files if name == NAME]
    others = [(name, file) for name, file in files if name != NAME]
    for _, file in others:
        _close(file)
    warnings = tuple(
        f"{manager} hands over a socket called {name[:80]!r}: it is closed, only {NAME} is served"
        for name, _ in others
    )
    socks: list[socket.socket] = []
    problem = ""
    for file in ours:
        try:
            socks.append(_served(file))
        except _Unfit as unfit:
            problem = problem or f"the socket {NAME} of {manager} {unfit}"
    found = Inherited(manager, tuple(sorted(socks, key=_nearness)), problem, warnings)
    if not problem:
        return found
    found.close()
    return Inherited(manager, problem=problem, warnings=warnings)


class _Unfit(Exception):
    """What keeps a file from being served."""


def _served(file: int) -> socket.socket:
    """Raises _Unfit, and then the file is closed."""
    try:
        sock = socket.socket(fileno=file)
    except OSError as error:
        _close(file)
        raise _Unfit(f"is no socket: {error.strerror}") from error
    sock.set_inheritable(False)
    if unfit := _unfit(sock):
        sock.close()
        raise _Unfit(unfit)
    return sock


def _unfit(sock: socket.socket) -> str:
    """In words; empty if nothing keeps it from being served."""
    if sock.family == socket.AF_UNIX:
        path = os.fsdecode(sock.getsockname()).replace("\0", "@")
        return f"is a unix-domain socket ({path}): mlxd serves TCP, at an address and a port"
    if sock.family not in _FAMILIES or sock.type != socket.SOCK_STREAM:
        return "is no TCP socket"
    if not _listens(sock):
        return "is not listening; a socket unit of systemd has to say Accept=no"
    return ""


def _listens(sock: socket.socket) -> bool:
    """macOS does not tell (ENOPROTOOPT): there, one without a peer is taken for a listener."""
    with contextlib.suppress(OSError):
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    try:
        sock.getpeername()
    except OSError:
        return True
    return False


def _close(file: int) -> None:
    with contextlib.suppress(OSError):
        os.close(file)


def _address(sock: socket.socket) -> tuple[str, int]:
    host, port = sock.getsockname()[:2]
    return host, port


def _nearness(sock: socket.socket) -> tuple[bool, bool]:
    """Those that other machines can reach come first, then IPv4."""
    host, _ = _address(sock)
    return Listen(host=host).loopback, sock.family != socket.AF_INET
