"""/api/copy and /api/delete: more names, and fewer models."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from mlxd.core.errors import ModelNotFound, quoted
from mlxd.server.edge import MODEL, policies_of
from mlxd.server.endpoints import PartsEndpoint
from mlxd.server.intake import read_json
from mlxd.server.pull import named
from mlxd.server.usable import check_for

Json = dict[str, Any]


class Copy(PartsEndpoint):
    """Another name for a model; its files are not copied."""

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        policies = policies_of(request)
        source, destination = await read_json(request, policies, _source_and_destination)
        request[MODEL] = source
        try:
            library, check = self._parts.library, check_for(request)
            await library.copy(source, destination, policies, check)
        except ModelNotFound as error:
            error.message = f'model "{quoted(source)}" not found'
            raise
        return web.Response()


class Delete(PartsEndpoint):
    """Takes a name away, or a pulled model with all its files."""

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        policies = policies_of(request)
        name = await read_json(request, policies, lambda body: named(body, "model", "name"))
        request[MODEL] = name
        await self._parts.library.delete(name, policies, check_for(request))
        return web.Response()


def _source_and_destination(body: Json) -> tuple[str, str]:
    return named(body, "source"), named(body, "destination")
