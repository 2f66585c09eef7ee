"""Where a request ends, and whom it is for: what two readers could take in two ways is refused.

A proxy that reads such a request in another way than mlxd does would take the rest of one for the
next, or somebody's answer for another's. Most of that aiohttp refuses by itself; this is the rest,
seen before anything is made of the request.
"""

from __future__ import annotations

from aiohttp import HttpVersion10, HttpVersion11
from aiohttp.http_exceptions import BadHttpMessage
from aiohttp.http_parser import RawRequestMessage

_VERSIONS = (HttpVersion10, HttpVersion11)
_PORTS = {"http": ":80", "https": ":443"}


def checked(message: RawRequestMessage) -> RawRequestMessage:
    """The same; it says that its connection ends with it where what follows could be read wrongly.

    Raises BadHttpMessage.
    """
    if message.version not in _VERSIONS:
        raise BadHttpMessage("neither HTTP/1.0 nor HTTP/1.1")
    if message.method == "CONNECT":
        raise BadHttpMessage("no tunnels are made here")
    if message.url.absolute:
        _check_target(message)
    if message.chunked:
        _check_chunked(message)
    # aiohttp takes a trailer behind the chunks for a header of the next request, and loses what
    # comes in one piece with a request to speak another protocol.
    if message.chunked or message.upgrade:
        return message._replace(should_close=True)
    return message


def _check_chunked(message: RawRequestMessage) -> None:
    """HTTP/1.0 knows no chunks, and a coding beneath them is not undone."""
    coding = message.headers.get("Transfer-Encoding", "")
    if message.version == HttpVersion10 or coding.strip().lower() != "chunked":
        raise BadHttpMessage("its end is not sure")


def _check_target(message: RawRequestMessage) -> None:
    """A target that names a host goes before Host, which is what walls look at."""
    authority = message.url.raw_authority.lower()
    host = message.headers.get("Host", authority).lower()
    port = _PORTS.get(message.url.scheme, "")
    if authority.removesuffix(port) != host.removesuffix(port):
        raise BadHttpMessage("its target and its Host differ")
