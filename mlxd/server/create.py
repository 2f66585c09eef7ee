"""/api/create: a model out of another one, with words and numbers of its own in front."""

from __future__ import annotations

from collections.abc import AsyncIterator

from aiohttp import web

from mlxd.control.progress import Progress
from mlxd.core.errors import UnsupportedFeature
from mlxd.core.models import ModelCard
from mlxd.dialects.ollama.create import parse_create
from mlxd.server.edge import MODEL, policies_of
from mlxd.server.errors import Render, in_ollama
from mlxd.server.intake import read_json
from mlxd.server.parts import Parts
from mlxd.server.progress import answer


class Create:
    """Nothing is copied and no weights are changed."""

    render_error: Render = staticmethod(in_ollama)

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        policies = policies_of(request)
        asked = await read_json(request, policies, parse_create)
        request[MODEL] = asked.name
        if asked.files:
            raise UnsupportedFeature("files are not taken; a model is made `from` another one")
        card = await self._parts.library.create(asked.name, asked.source, asked.preset, policies)
        return await answer(request, _lines(card), stream=asked.stream)


async def _lines(card: ModelCard) -> AsyncIterator[Progress]:
    yield Progress(f"using existing layer sha256:{card.digest}")
    yield Progress("writing manifest")
    yield Progress("success")
