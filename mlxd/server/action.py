"""An endpoint of the admin socket from an async function."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from mlxd.core.errors import Forbidden
from mlxd.server.answers import json_response
from mlxd.server.errors import Render, in_ollama
from mlxd.server.peer import is_stranger

Json = dict[str, Any]

Answer = tuple[Json, str]
"""A body, and the ETag of the policies that it tells of."""


class Action:
    """An endpoint from an async function of the request."""

    render_error: Render = staticmethod(in_ollama)

    def __init__(self, act: Callable[[web.BaseRequest], Awaitable[Answer]]) -> None:
        self._act = act

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        if is_stranger(request):
            raise Forbidden(
                "the admin socket answers its own user and root",
                would_pass="the same request of the user who runs mlxd, or of root",
            )
        body, etag = await self._act(request)
        response = json_response(body)
        response.headers["ETag"] = etag
        return response
