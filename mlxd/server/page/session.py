"""What the page asks first: what it may do here, and with what."""

from __future__ import annotations

from aiohttp import web

from mlxd import __version__
from mlxd.core.errors import Forbidden
from mlxd.server.answers import json_response
from mlxd.server.edge import caller_of, policies_of
from mlxd.server.errors import Render, in_ollama
from mlxd.server.identity import keys_required_of
from mlxd.server.page.assets import check_served, guarded
from mlxd.server.page.token import PageToken, check_own


class Session:
    """`GET /ui/session`: the token, or why there is none."""

    render_error: Render = staticmethod(in_ollama)

    def __init__(self, token: PageToken) -> None:
        self._token = token

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        check_served(request)
        check_own(request)
        token, why = None, ""
        try:
            token = await self._token.give(request)
        except Forbidden as refused:
            why = refused.message
        policies, caller = policies_of(request), caller_of(request)
        tenant = policies.tenants.get(caller.tenant.casefold())
        body = {
            "version": __version__,
            "token": token,
            "why": why,
            "keys_required": keys_required_of(request, policies),
            "key": caller.key or None,
            "admin": token is not None or tenant in policies.administrators,
        }
        return guarded(json_response(body))
