"""Where `mlxd serve` listens: what its service manager hands over, or an address of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mlxd.core.instance import authority
from mlxd.policy.boot import Boot
from mlxd.policy.load import Override, PolicyErrors
from mlxd.server.inherited import Inherited
from mlxd.server.port import Bound, PortTaken, bind

_PROBE_TIMEOUT = 0.3

Start = Callable[[Sequence[Override]], Boot]
"""Boot under these overrides. Raises PolicyErrors."""


class Taken(Exception):
    """Somebody else listens there; the message says who."""


class CannotListen(Exception):
    """Why, in words."""


class Unusable(Exception):
    """What was handed over cannot be served; the message says why."""


@dataclass(frozen=True, slots=True)
class Found:
    """The first policies, and whether they have the daemon serve what was handed over."""

    booted: Boot
    overrides: tuple[Override, ...]
    inherits: bool


def find(start: Start, own: Sequence[Override], inherited: Inherited) -> Found:
    """Boot under what the sockets say of host and port, unless the policies decline the sockets.

    Raises PolicyErrors.
    """
    theirs = [Override(*override) for override in inherited.overrides()]
    if not theirs:
        return _found(start, own)
    try:
        found = _found(start, [*own, *theirs])
    except PolicyErrors:
        if (declined := _declined(start, own)) is None:
            raise
        return declined
    if not found.inherits:
        return _found(start, own)
    if found.booted.errors:  # the last good ones: the files may say otherwise
        return _declined(start, own) or found
    return found


def _found(start: Start, overrides: Sequence[Override]) -> Found:
    booted = start(overrides)
    inherits = booted.policies.server.listen.inherit == "auto"
    return Found(booted, tuple(overrides), inherits)


def _declined(start: Start, own: Sequence[Override]) -> Found | None:
    """As it is without the sockets, if that is what the files want."""
    try:
        found = _found(start, own)
    except PolicyErrors:
        return None
    return None if found.inherits or found.booted.errors else found


def bound(found: Found, inherited: Inherited) -> Bound:
    """Raises Unusable, Taken, CannotListen."""
    listen = found.booted.policies.server.listen
    if found.inherits and inherited.problem:
        raise Unusable(inherited.problem)
    if found.inherits and inherited.socks:
        return Bound(inherited.socks, shared=True)
    where = authority(listen.host, listen.port)
    if (listen.host, listen.port) in inherited.addresses():
        raise Taken(f"{where} is the {inherited.source}, which server.listen.inherit declines")
    inherited.close()
    try:
        return Bound((bind(listen.host, listen.port),))
    except PortTaken as taken:
        raise Taken(_taken(listen.host, listen.port)) from taken
    except OSError as error:
        raise CannotListen(f"cannot listen on {where}: {error}") from error


def vain(own: Sequence[Override], found: Found, inherited: Inherited) -> list[str]:
    """What was handed over, or said outside the files, and has no effect."""
    texts = {key: text for key, text, _ in inherited.overrides()} if found.inherits else {}
    return [
        *inherited.warnings,
        *(
            f"{one.source}: {one.text} has no effect: the {inherited.source} is served,"
            f" at {authority(*inherited.addresses()[0])}"
            for one in own
            if texts.get(one.key, one.text) != one.text
        ),
    ]


def _taken(host: str, port: int) -> str:
    who = holder(host, port)
    return f"{authority(host, port)} is taken by {who}; see --port, MLXD_PORT or server.listen.port"


def holder(host: str, port: int) -> str:
    """Who listens there, in words: another mlxd says so itself, the system may know the others."""
    from mlxd.cli.client import NoAnswer, get_json

    try:
        health = get_json((host, port), "/health", timeout=_PROBE_TIMEOUT)
    except NoAnswer:
        health = {}
    pid = health["pid"] if isinstance(health.get("pid"), int) else _listener_pid(port)
    if health.get("service") == "mlxd":
        return f"another mlxd (pid {pid})" if pid else "another mlxd"
    return f"another process (pid {pid})" if pid else "another process"


def _listener_pid(port: int) -> int:
    """0 where the system does not tell."""
    import psutil

    try:
        connections = psutil.net_connections("tcp")
    except (psutil.Error, OSError):
        return 0
    for connection in connections:
        address = connection.laddr
        if connection.status == psutil.CONN_LISTEN and address and address.port == port:
            return connection.pid or 0
    return 0
