"""Routes behind a check of who asks."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from mlxd.core.errors import Forbidden, PolicyLine
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.strict_yaml import dotted
from mlxd.server.edge import Endpoint, Route, caller_of, policies_of
from mlxd.server.identity import ADMIN
from mlxd.server.page.token import HEADER, PageToken

Check = Callable[[web.BaseRequest], None]
"""Raises Forbidden."""


class Guarded:
    """One door to the admin side: everything behind it passes the same check."""

    def __init__(self, route: Route, check: Check) -> None:
        self._route = route
        self._check = check

    def __call__(self, request: web.BaseRequest) -> Endpoint:
        self._check(request)
        return self._route(request)


class Front:
    """What TCP serves: what is everybody's, and the admin side for administrators."""

    def __init__(self, route: Route) -> None:
        self._route = route
        self.admin: Route = route
        """Set once the admin side is made: it looks at the listener that this one serves."""

    def __call__(self, request: web.BaseRequest) -> Endpoint:
        return (self.admin if request.path.startswith(ADMIN) else self._route)(request)


class Administrators:
    """Who may use the admin side over TCP: whoever has a key of a tenant with `admin`, and the page
    that this daemon has given its token.
    """

    def __init__(self, token: PageToken) -> None:
        self._token = token

    def check(self, request: web.BaseRequest) -> None:
        """Raises Forbidden."""
        policies, caller = policies_of(request), caller_of(request)
        tenant = policies.tenants.get(caller.tenant.casefold())
        if caller.key and tenant in policies.administrators:
            return
        if HEADER in request.headers:
            self._token.check(request)
            return
        raise Forbidden(
            "the admin side is not everybody's",
            policy=_line(policies, tenant if caller.key else None),
            would_pass="a key of a tenant with `admin: true`, the page at /ui on the machine"
            " itself, or the admin socket",
        )


def _line(policies: PolicySet, tenant: str | None) -> PolicyLine:
    """What would let a tenant in; of the others and what they may, nobody is told."""
    if tenant is None:
        return policies.line_unseen("clients.tenants")
    return policies.line(dotted(("clients", "tenants", tenant, "admin")))
