"""The token with which the page may do what the admin socket does.

It is for a browser on this machine that shows this daemon's own page: a page of another origin, a
name that was turned to this address, a proxy and another user get none, and gain nothing by one.
"""

from __future__ import annotations

import hmac
import secrets

from aiohttp import web

from mlxd.core.errors import Forbidden, PolicyLine
from mlxd.policy.schema.server import is_loopback
from mlxd.server.edge import policies_of
from mlxd.server.identity import keys_required_of
from mlxd.server.managers import is_here
from mlxd.server.page.neighbour import Neighbours
from mlxd.server.walls import host_of

HEADER = "X-Mlxd-Page"
_RANDOM_BYTES = 32
_OWN = frozenset((None, "same-origin"))
"""What browsers say of a request that the page itself makes; other clients say nothing."""


class PageToken:
    """One for the life of a daemon."""

    def __init__(self) -> None:
        self._token = secrets.token_urlsafe(_RANDOM_BYTES)
        self._neighbours = Neighbours()

    async def give(self, request: web.BaseRequest) -> str:
        """Raises Forbidden with the reason."""
        _check_place(request)
        if await self._neighbours.is_anothers(request):
            raise Forbidden(
                "this browser belongs to another user than the daemon",
                would_pass="a key of a tenant with `clients.tenants.<name>.admin: true`",
            )
        return self._token

    def check(self, request: web.BaseRequest) -> None:
        """Of a request that shows one. Raises Forbidden."""
        _check_place(request)
        shown = request.headers.get(HEADER, "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(shown, self._token.encode()):
            raise Forbidden(
                "the page's token is of another run of the daemon",
                would_pass="the same request after the page was loaded anew",
            )


def check_own(request: web.BaseRequest) -> None:
    """Whether no other page asks. Raises Forbidden."""
    origin = request.headers.get("Origin")
    same = origin is None or origin == f"http://{request.headers.get('Host', '')}"
    if not same or request.headers.get("Sec-Fetch-Site") not in _OWN:
        raise Forbidden(
            "this is for the page at /ui alone", would_pass="the page at /ui of this daemon"
        )


def _check_place(request: web.BaseRequest) -> None:
    """Raises Forbidden."""
    check_own(request)
    if (line := _closed(request)) is not None:
        raise Forbidden(
            "the page needs the key of an administrator",
            policy=line,
            would_pass="a key of a tenant with `clients.tenants.<name>.admin: true`",
        )
    named = is_loopback(host_of(request.headers.get("Host", "")).strip("[]"))
    if not named or not is_here(request):
        raise Forbidden(
            "the page may change nothing from another machine, or through a proxy",
            would_pass="the same at http://localhost, or a key of a tenant with"
            " `clients.tenants.<name>.admin: true`",
        )


def _closed(request: web.BaseRequest) -> PolicyLine | None:
    """The policy by which nobody has a token."""
    policies = policies_of(request)
    if not policies.server.page:
        return policies.line("server.page")
    if policies.administrators:
        return policies.line_unseen("clients.tenants")
    if keys_required_of(request, policies):
        return policies.line("clients.auth.required")
    return None if policies.server.listen.loopback else policies.line("server.listen.host")
