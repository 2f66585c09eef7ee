"""Which address a request comes from, behind trusted proxies."""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache

from aiohttp import web

from mlxd.policy.policy_set import PolicySet

_MOST_PROXIES = 32
_REMEMBERED = 256
"""Addresses: the same ones ask again and again."""
_PORT = re.compile(r"(?:\[(?P<six>[^\]]*)\]|(?P<four>[0-9.]+))(?::[0-9]{1,5})?")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def address_of(request: web.BaseRequest, policies: PolicySet) -> str:
    """Whose quota a request counts on where it has no key: the rightmost address that no trusted
    proxy has, or the peer's where there is none that can be read.
    """
    peer = request.remote or ""
    if not policies.proxies:
        return client_at(peer)
    asks = _parsed(peer)
    if asks is None:
        return client_at(peer)
    written = ",".join(request.headers.getall("X-Forwarded-For", ()))
    for step, text in enumerate(reversed(written.split(","))):
        if not _trusted(asks, policies) or not written or step == _MOST_PROXIES:
            break
        before = _parsed(text.strip())
        if before is None:
            return client_at(peer)
        asks = before
    return client_at(str(asks))


@lru_cache(_REMEMBERED)
def client_at(remote: str) -> str:
    """Whose quota a request from an address counts on: the address, the /64 of an IPv6 one."""
    address = _parsed(remote)
    if address is None:
        return remote or "local"
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def is_proxy(peer: str, policies: PolicySet) -> bool:
    """Whether what comes from there may be of many clients."""
    address = _parsed(peer) if policies.proxies else None
    return address is not None and _trusted(address, policies)


def _trusted(address: Address, policies: PolicySet) -> bool:
    return any(address in network for network in policies.proxies)


def _parsed(text: str) -> Address | None:
    """An address, with or without a port or a zone; None: it is none."""
    if match := _PORT.fullmatch(text):
        text = match["six"] or match["four"]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
