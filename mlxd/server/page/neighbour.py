"""Whose the other end of a loopback connection is, as far as the system tells: Linux lists each
connection with the user that it belongs to.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from aiohttp import web

from mlxd.core.threads import Threads

_LISTS = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_STATE, _UID = 0, 4
"""Columns behind the two ends."""
_OF_NOBODY = frozenset((b"06", b"0A"))
"""TIME_WAIT, which is said to be root's whoever had it, and LISTEN."""
_MAPPED = b"\0" * 10 + b"\xff" * 2
"""Before an IPv4 address in IPv6's clothes."""

_End = tuple[str, int]
"""An address and a port."""


class Neighbours:
    """Looks one connection up at a time, off the event loop: the lists may be long."""

    def __init__(self) -> None:
        self._threads = Threads("page")
        self._turn = asyncio.Lock()

    async def is_anothers(self, request: web.BaseRequest) -> bool:
        """Another user's than this process's, or nobody's that is listed; False where the system
        does not tell.
        """
        theirs, ours = _end(request, "peername"), _end(request, "sockname")
        if theirs is None or ours is None:
            return True
        async with self._turn:
            uids = await self._threads.run(uids_of, theirs, ours)
        return uids is not None and uids != {os.geteuid()}


def uids_of(theirs: _End, ours: _End) -> set[int] | None:
    """Whose the sockets at `theirs` are that are connected to `ours`; None: the system does not
    tell. May block for a moment.
    """
    texts = [text for file in _LISTS if (text := _read(file)) is not None]
    if not texts:
        return None
    rows = [_row(*ends) for ends in zip(_printed(theirs), _printed(ours), strict=True)]
    return {uid for text in texts for row in rows for uid in _uids(text, row)}


def _end(request: web.BaseRequest, name: str) -> _End | None:
    found = request.transport.get_extra_info(name) if request.transport is not None else None
    return (str(found[0]), int(found[1])) if isinstance(found, tuple) else None


def _read(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except OSError:
        return None


def _row(local: bytes, remote: bytes) -> bytes:
    """What stands in a row between its number and its state."""
    return b": %s %s " % (local, remote)


def _uids(text: bytes, row: bytes) -> Iterator[int]:
    at = text.find(row)
    while at >= 0:
        begin = at + len(row)
        columns = text[begin : text.find(b"\n", begin)].split()
        if columns[_STATE] not in _OF_NOBODY:
            yield int(columns[_UID])
        at = text.find(row, begin)


def _printed(end: _End) -> tuple[bytes, bytes]:
    """As the kernel prints it: in its own family, and in IPv6, where a socket of that may have an
    address of IPv4 too.
    """
    address = ipaddress.ip_address(end[0].partition("%")[0])
    plain = (getattr(address, "ipv4_mapped", None) or address).packed
    six = plain if len(plain) == 16 else _MAPPED + plain
    return _words(plain, end[1]), _words(six, end[1])


def _words(packed: bytes, port: int) -> bytes:
    """Of 32 bits, each in the machine's order."""
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return ("".join(f"{word:08X}" for word in words) + f":{port:04X}").encode()
