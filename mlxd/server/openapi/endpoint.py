"""GET /openapi.json."""

from __future__ import annotations

from aiohttp import web

from mlxd.server.errors import Render, in_ollama
from mlxd.server.intake import in_thread


class Description:
    """The document of every route. It is made when somebody asks first, and kept as it is sent."""

    render_error: Render = staticmethod(in_ollama)

    def __init__(self) -> None:
        self._body = b""

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        if not self._body:
            self._body = await in_thread(_encoded)
        return web.Response(body=self._body, content_type="application/json", charset="utf-8")


def _encoded() -> bytes:
    from mlxd.server.openapi.document import encoded  # few ask: a start does without its tables

    return encoded()
