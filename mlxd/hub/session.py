"""Whom the process may talk to: the hub that the operator named, and where it sends us."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import constants, set_client_factory
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import default_client_factory

from mlxd import __version__
from mlxd.hub.failure import PullFailure

_TIMEOUT = httpx2.Timeout(30.0)


@dataclass(frozen=True, slots=True)
class Hub:
    """Where to ask, and what to say of ourselves."""

    endpoint: str
    headers: Mapping[str, str]
    token: str | bool
    """False: none, not even one that a file holds."""


def open_hub(endpoint: str) -> Hub:
    """Make the library's connections ours. Empty: the library's own endpoint."""
    base = (endpoint or constants.ENDPOINT).rstrip("/")
    walls = Walls(base)

    def client() -> httpx2.Client:
        made = default_client_factory()
        made.timeout = _TIMEOUT
        made.event_hooks["request"].append(walls.check)
        return made

    set_client_factory(client)
    token = os.environ.get("HF_TOKEN", "").strip() or False
    headers = build_hf_headers(token=token, library_name="mlxd", library_version=__version__)
    return Hub(base, headers, token)


class Walls:
    """A hub may send us on, to where its files are, but not down from https, and not from the
    world into this machine or its network.
    """

    def __init__(self, endpoint: str) -> None:
        url = urlsplit(endpoint)
        self._scheme = url.scheme
        self._own = _origin(endpoint)
        self._host = url.hostname or ""

    def check(self, request: httpx2.Request) -> None:
        """Called with every request, those that follow a redirect too. Raises PullFailure."""
        url = urlsplit(str(request.url))
        if _origin(str(request.url)) == self._own:
            return
        if self._scheme == "https" and url.scheme != "https":
            raise PullFailure("refused", f"the hub sends us to {url.hostname} without encryption")
        if _is_private(url.hostname or "") and not _is_private(self._host):
            raise PullFailure(
                "refused", f"the hub sends us to {url.hostname}, which is in this network"
            )


def _origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return parts.scheme, (parts.hostname or "").lower(), port


def _is_private(host: str) -> bool:
    """Whether any address of it is of this machine or a private network; a name that nobody here
    can look up is left to whoever connects to it.
    """
    try:
        found = socket.getaddrinfo(host, None, proto=socket.IPPROTO_TCP)
    except (OSError, UnicodeError):
        return False
    addresses = [str(entry[4][0]).partition("%")[0] for entry in found]
    return any(not ipaddress.ip_address(address).is_global for address in addresses)
