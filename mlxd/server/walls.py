"""The walls before every route: how many headers there may be and how long, against rebinding of
names (Host), and against foreign pages (Origin).
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache

from aiohttp import web

from mlxd.core.errors import Forbidden, HeadersTooLarge
from mlxd.policy.origins import origin_allowed
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.schema.clients import Cors

OnTrial = Callable[[str], None]
"""Told the name of a rule in mode dry_run that would have refused."""

_REMEMBERED = 256
"""Hosts that have been judged: the same ones ask again and again."""
_BETWEEN = len(": \r\n")
_NO_HOST = "?"
"""In place of what is no host: no name or address is like it."""
OWN_NAMES = "own-names"
LOOPBACK_ADDRESSES = "loopback-addresses"
PRIVATE_ADDRESSES = "private-addresses"
_EXPOSED = (
    "X-Request-Id, Request-Id, Retry-After, retry-after-ms, RateLimit, RateLimit-Policy,"
    " X-Mlxd-Code, X-Mlxd-Policy, X-Mlxd-Policy-Key, X-Mlxd-Policy-Place, X-Mlxd-Would-Deny,"
    " X-Mlxd-Needed-Bytes, X-Mlxd-Available-Bytes, X-Mlxd-Priority, X-Mlxd-Free-Slots,"
    " X-Mlxd-Expected-Wait, X-Mlxd-Queue-Position, X-Should-Retry,"
    " x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests,"
    " x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens,"
    " anthropic-ratelimit-requests-limit, anthropic-ratelimit-requests-remaining,"
    " anthropic-ratelimit-requests-reset, anthropic-ratelimit-tokens-limit,"
    " anthropic-ratelimit-tokens-remaining, anthropic-ratelimit-tokens-reset"
)
_ALLOWED_HEADERS = (
    "Authorization, Content-Type, User-Agent, Accept, X-Requested-With, OpenAI-Beta, x-api-key,"
    " anthropic-version, anthropic-beta, anthropic-dangerous-direct-browser-access, X-Request-Id,"
    " X-Request-Priority,"
    " traceparent, x-stainless-arch, x-stainless-async, x-stainless-custom-poll-interval,"
    " x-stainless-helper-method, x-stainless-lang, x-stainless-os, x-stainless-package-version,"
    " x-stainless-poll-helper, x-stainless-retry-count, x-stainless-runtime,"
    " x-stainless-runtime-version, x-stainless-timeout, x-stainless-helper, Last-Event-ID,"
    " Idempotency-Key, OpenAI-Organization, OpenAI-Project, tracestate"
)
_LONGEST_WISH = 2048
_HOST_AND_PORT = re.compile(r"(\[[0-9a-f:.]+(?:%[a-z0-9._~-]+)?\]|[^\[\]:/@\s]*)(?::[0-9]*)?")
_NAMES_OF_HEADERS = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~, -]+")


def check_headers(request: web.BaseRequest, policies: PolicySet) -> None:
    """Their number and their sum. aiohttp reads no more of either than was allowed when the
    connection began.
    """
    http = policies.server.http
    count = len(request.raw_headers)
    if count > http.max_headers:
        raise too_many_headers(policies, {"headers": count})
    limit = int(http.max_header_bytes)
    size = sum(len(name) + len(value) + _BETWEEN for name, value in request.raw_headers)
    if size > limit:
        what = "the request's headers are"
        raise too_long_headers(policies, what, {"header_bytes": size})


def too_many_headers(policies: PolicySet, found: dict[str, float]) -> HeadersTooLarge:
    """`found`: how many there are, where that is known."""
    limit = policies.server.http.max_headers
    return HeadersTooLarge(
        f"the request has more than {limit} headers",
        policy=policies.line("server.http.max_headers"),
        numbers={**found, "allowed_headers": limit},
        would_pass=f"at most {limit} headers",
    )


def too_long_headers(policies: PolicySet, what: str, found: dict[str, float]) -> HeadersTooLarge:
    """`what` is too long, with its verb; `found`: how long, where that is known."""
    limit = int(policies.server.http.max_header_bytes)
    return HeadersTooLarge(
        f"{what} larger than {limit} bytes",
        policy=policies.line("server.http.max_header_bytes"),
        numbers={**found, "allowed_bytes": limit},
        would_pass=f"headers of at most {limit} bytes together",
    )


def check_host(request: web.BaseRequest, policies: PolicySet, on_trial: OnTrial) -> None:
    """Against DNS rebinding; only where the listener is bound to loopback."""
    hosts = policies.clients.hosts
    if not policies.server.listen.loopback or hosts.mode == "off":
        return
    host = request.headers.get("Host", "")
    if _host_allowed(host_of(host), hosts.allow):
        return
    if hosts.mode == "dry_run":
        on_trial("hosts")
        return
    raise Forbidden(
        f"the Host {host[:80]!r} is not allowed",
        policy=policies.line("clients.hosts.allow"),
        would_pass="a Host that is allowed there, such as localhost",
    )


def origin_of(request: web.BaseRequest, policies: PolicySet, on_trial: OnTrial) -> str | None:
    """Of a page that may read the answer; None: no page asks. One of a foreign origin may not use
    the API, whatever method it tries: raises Forbidden.
    """
    origin = request.headers.get("Origin")
    if origin is None:
        return None
    cors = policies.clients.cors
    same = {f"{scheme}://{request.headers.get('Host', '')}" for scheme in ("http", "https")}
    allowed = origin in same or origin_allowed(origin, cors.allow_origins)
    if allowed or cors.mode != "enforce":
        if not allowed and cors.mode == "dry_run":
            on_trial("cors")
        return origin
    raise Forbidden(
        f"the Origin {origin[:80]!r} is not allowed",
        policy=policies.line("clients.cors.allow_origins"),
        would_pass="a page of an origin that is allowed there, or a client that is no browser",
    )


def headers_for(origin: str, cors: Cors) -> dict[str, str]:
    """With which a page of it may read the answer. Credentials are for listed origins: one that is
    answered because nothing is refused sends none.
    """
    headers = {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Expose-Headers": _EXPOSED,
        "Vary": "Origin",
    }
    if cors.allow_credentials and origin_allowed(origin, cors.allow_origins):
        headers["Access-Control-Allow-Credentials"] = "true"
    return headers


def preflight(request: web.BaseRequest) -> web.Response:
    """A page that may ask may send what it likes: clients have headers of their own."""
    allowed = _ALLOWED_HEADERS
    wished = request.headers.get("Access-Control-Request-Headers", "")
    if len(wished) <= _LONGEST_WISH and _NAMES_OF_HEADERS.fullmatch(wished):
        allowed = f"{allowed}, {wished}"
    return web.Response(
        status=204,
        headers={
            "Access-Control-Allow-Methods": "GET, POST, PUT, PATCH, DELETE, HEAD, OPTIONS",
            "Access-Control-Allow-Headers": allowed,
            "Access-Control-Max-Age": "43200",
        },
    )


def host_allowed(host: str, patterns: Sequence[str]) -> bool:
    """`host` is in lower case and without its port; none at all is allowed (HTTP/1.0)."""
    if not host:
        return True
    address = _address(host)
    if address is None:
        return any(fnmatchcase(host, pattern.lower()) for pattern in patterns) or (
            OWN_NAMES in patterns and host in _own_names()
        )
    local = address.is_loopback or address.is_unspecified
    private = address.is_private or address.is_link_local
    return (
        (LOOPBACK_ADDRESSES in patterns and local)
        or (PRIVATE_ADDRESSES in patterns and private)
        or str(address) in patterns
    )


_host_allowed = lru_cache(_REMEMBERED)(host_allowed)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """None: it is a name, or nothing that a browser would send."""
    try:
        if not host.endswith("]"):
            return ipaddress.IPv4Address(host)
        address = ipaddress.IPv6Address(host[1:-1].partition("%")[0])
    except ValueError:
        return None
    return address.ipv4_mapped or address


def _own_names() -> frozenset[str]:
    name = socket.gethostname().lower()
    return frozenset({name, name.partition(".")[0]})


def host_of(header: str) -> str:
    """The Host header without its port and the dot that may end a name, in lower case."""
    header = header.strip().lower()
    found = _HOST_AND_PORT.fullmatch(header)
    return (found is not None and found[1].removesuffix(".")) or (header and _NO_HOST)
