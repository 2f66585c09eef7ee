"""/api/create: a model out of another one or of uploaded files, with words of its own in front."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from aiohttp import web

from mlxd.control.progress import Progress
from mlxd.dialects.ollama.create import parse_create
from mlxd.server.edge import MODEL, policies_of
from mlxd.server.endpoints import PartsEndpoint
from mlxd.server.intake import read_json
from mlxd.server.progress import answer
from mlxd.server.usable import check_for


class Create(PartsEndpoint):
    """No weights are changed, and none of another model copied."""

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        policies = policies_of(request)
        asked = await read_json(request, policies, parse_create)
        request[MODEL] = asked.name
        library, check = self._parts.library, check_for(request)
        if asked.files:
            await library.build(asked.name, asked.files, asked.preset, policies, check)
            layers = [digest for _, digest in asked.files]
        else:
            card = await library.create(asked.name, asked.source, asked.preset, policies, check)
            layers = [card.digest]
        return await answer(request, _lines(layers), stream=asked.stream)


async def _lines(layers: Sequence[str]) -> AsyncIterator[Progress]:
    for digest in dict.fromkeys(layers):
        yield Progress(f"using existing layer sha256:{digest}")
    yield Progress("writing manifest")
    yield Progress("success")
