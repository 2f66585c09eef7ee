"""Whom the process may talk to: the hub that the operator named, and where it sends us."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

import httpx2
from huggingface_hub import constants, get_session, set_client_factory
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import default_client_factory

from mlxd import __version__
from mlxd.hub.failure import PullFailure

_TIMEOUT = httpx2.Timeout(30.0)
_LONGEST_REDIRECT = 64 * 2**10
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Hub:
    """Where to ask, and what to say of ourselves."""

    endpoint: str
    headers: Mapping[str, str]
    token: str | bool
    """False: none, not even one that a file holds."""


def open_hub(endpoint: str) -> Hub:
    """Make the library's connections ours. Empty: its own endpoint. Raises PullFailure."""
    base = (endpoint or constants.ENDPOINT).rstrip("/")
    walls = Walls(base)

    def client() -> httpx2.Client:
        made = default_client_factory()
        made.timeout = _TIMEOUT
        made.event_hooks["request"].append(walls.check)
        made.event_hooks["response"].append(check_redirect)
        return made

    set_client_factory(client)
    token = os.environ.get("HF_TOKEN", "").strip() or False
    headers = build_hf_headers(token=token, library_name="mlxd", library_version=__version__)
    return Hub(base, headers, token)


@contextmanager
def answer(hub: Hub, url: str, **headers: str) -> Iterator[httpx2.Response]:
    """What a GET is answered with, its body not read and not compressed.

    Raises PullFailure, TransportError.
    """
    own = {**hub.headers, "Accept-Encoding": "identity", **headers}
    try:
        with get_session().stream("GET", url, headers=own) as response:
            yield response
    except httpx2.TooManyRedirects as error:
        raise PullFailure("refused", "the hub sends us in a circle") from error


class Walls:
    """A hub may send us on, to where its files are, but not down from https, and not from the
    world into this machine or its network. To what is only on the same link, nobody sends us.
    """

    def __init__(self, endpoint: str) -> None:
        try:
            self._own = _origin(urlsplit(endpoint))
        except ValueError as error:
            raise PullFailure("refused", "the hub's address is no http or https URL") from error
        self._scheme, self._host, _ = self._own

    def check(self, request: httpx2.Request) -> None:
        """Called with every request, those that follow a redirect too. Raises PullFailure."""
        try:
            origin = _origin(urlsplit(str(request.url)))
        except ValueError as error:
            raise _nowhere() from error
        if origin == self._own:
            return
        scheme, host, _ = origin
        if self._scheme == "https" and scheme != "https":
            raise PullFailure("refused", f"the hub sends us to {host} without encryption")
        addresses = _addresses(host)
        if any(address.is_link_local for address in addresses) or (
            _is_private(addresses) and not _is_private(_addresses(self._host))
        ):
            raise PullFailure("refused", f"the hub sends us to {host}, which is in this network")


def check_redirect(response: httpx2.Response) -> None:
    """Called with every answer. The library reads the body of a redirect, however long, and takes
    one that leads nowhere for a broken connection. Raises PullFailure.
    """
    if not response.has_redirect_location:
        return
    try:
        urlsplit(str(httpx2.URL(response.headers["Location"])))
    except (httpx2.InvalidURL, ValueError) as error:
        raise _nowhere() from error
    response.headers.pop("Content-Encoding", None)
    assert isinstance(response.stream, httpx2.SyncByteStream)
    response.stream = _Short(response.stream)


class _Short(httpx2.SyncByteStream):
    """A body that nobody needs."""

    def __init__(self, stream: httpx2.SyncByteStream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        """Raises PullFailure."""
        have = 0
        for chunk in self._stream:
            have += len(chunk)
            if have > _LONGEST_REDIRECT:
                raise PullFailure("refused", "the hub sends us on in too many words")
            yield chunk

    def close(self) -> None:
        self._stream.close()


def _nowhere() -> PullFailure:
    return PullFailure("refused", "the hub sends us to what is no http or https URL")


def _origin(url: SplitResult) -> tuple[str, str, int]:
    """Raises ValueError for what is no place to ask."""
    if url.scheme not in _PORTS or not url.hostname:
        raise ValueError(url.scheme)
    return url.scheme, url.hostname.lower(), url.port or _PORTS[url.scheme]


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _addresses(host: str) -> list[_Address]:
    """None of a name that nobody here can look up: that is left to whoever connects to it."""
    try:
        found = socket.getaddrinfo(host, None, proto=socket.IPPROTO_TCP)
    except (OSError, UnicodeError):
        return []
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    return [getattr(address, "ipv4_mapped", None) or address for address in addresses]


def _is_private(addresses: Sequence[_Address]) -> bool:
    """Whether any of them is of this machine or a private network."""
    return any(not address.is_global for address in addresses)
