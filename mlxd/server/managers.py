"""Who may change which models there are: policy `clients.manage_models` over HTTP."""

from __future__ import annotations

import ipaddress

from aiohttp import HttpVersion11, web

from mlxd.core.errors import Forbidden
from mlxd.server.edge import Endpoint, policies_of
from mlxd.server.errors import Render

_FORWARDED = "x-forwarded-"
_RELAYED = frozenset(
    ("forwarded", "via", "cf-connecting-ip", "true-client-ip", "x-client-ip", "x-real-ip")
)
"""What proxies add; some add nothing, and ask in HTTP/1.0."""


class ForManagers:
    """An endpoint that policy may keep for this machine, or from everybody."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.render_error: Render = endpoint.render_error
        self._endpoint = endpoint

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        policies = policies_of(request)
        allowed = policies.clients.manage_models
        here = policies.server.listen.loopback and is_here(request)
        if allowed == "never" or (allowed == "loopback" and not here):
            raise Forbidden(
                "models are not pulled, copied or deleted from here; `mlxd` does it on the machine"
                " itself",
                policy=policies.line("clients.manage_models"),
                would_pass="`mlxd models` on the machine itself",
            )
        return await self._endpoint(request)


def is_here(request: web.BaseRequest) -> bool:
    """Whether the client is on this machine; one that a proxy speaks for may be anywhere."""
    if _is_relayed(request):
        return False
    try:
        address = ipaddress.ip_address((request.remote or "").partition("%")[0])
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _is_relayed(request: web.BaseRequest) -> bool:
    """A proxy speaks for somebody, as far as it says so."""
    names = (name.lower() for name in request.headers)
    added = any(name in _RELAYED or name.startswith(_FORWARDED) for name in names)
    return added or request.version < HttpVersion11
