"""Whose the other end of a loopback connection is, as far as the system tells: Linux lists each
connection with the user that it belongs to.
"""

from __future__ import annotations

import ipaddress
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from aiohttp import web

_LISTS = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_LOCAL, _UID = 1, 7
"""Columns."""

_End = tuple[str, int]
"""An address and a port."""


def is_anothers(request: web.BaseRequest) -> bool:
    """Another user's than root's and ours; False where the system does not tell."""
    found = request.transport.get_extra_info("peername") if request.transport is not None else None
    if not isinstance(found, tuple) or len(found) < 2:
        return False
    uid = uid_of((_plain(str(found[0])), int(found[1])))
    return uid is not None and uid not in (0, os.geteuid())


def uid_of(end: _End) -> int | None:
    """None: the system does not tell. May block for a moment."""
    return next((uid for local, uid in _listed() if local == end), None)


def _listed() -> Iterator[tuple[_End, int]]:
    """Each connection's own end, and whose it is."""
    for file in _LISTS:
        try:
            lines = file.read_text("ascii").splitlines()[1:]
        except (OSError, ValueError):
            continue
        for line in lines:
            columns = line.split()
            address, _, port = columns[_LOCAL].partition(":")
            yield (_address(address), int(port, 16)), int(columns[_UID])


def _address(digits: str) -> str:
    """From words in the machine's order, as the kernel prints them."""
    words = [int(digits[at : at + 8], 16) for at in range(0, len(digits), 8)]
    return _plain(str(ipaddress.ip_address(struct.pack(f"={len(words)}I", *words))))


def _plain(address: str) -> str:
    """Of an IPv4 address in IPv6's clothes, the address."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)
