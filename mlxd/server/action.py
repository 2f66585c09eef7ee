"""An endpoint of the admin side from an async function."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from mlxd.core.threads import Threads
from mlxd.server.answers import is_large, json_response, large_json_response
from mlxd.server.errors import Render, in_ollama

Json = dict[str, Any]

Answer = tuple[Json, str]
"""A body, and the ETag of the policies that it tells of."""
_threads = Threads("answers")


class Action:
    """An endpoint from an async function of the request."""

    render_error: Render = staticmethod(in_ollama)

    def __init__(self, act: Callable[[web.BaseRequest], Awaitable[Answer]]) -> None:
        self._act = act

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        body, etag = await self._act(request)
        if is_large(body):
            response = await _threads.run_or_here(large_json_response, body)
        else:
            response = json_response(body)
        response.headers["ETag"] = etag
        return response
