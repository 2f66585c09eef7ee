"""/api/copy, /api/delete, and what is offered of /api/create: more names, and fewer models."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from mlxd.control.progress import Progress
from mlxd.core.errors import InvalidRequest, ModelNotFound, UnsupportedFeature
from mlxd.core.models import ModelCard
from mlxd.server.edge import MODEL, policies_of
from mlxd.server.errors import Render, in_ollama
from mlxd.server.intake import read_json
from mlxd.server.parts import Parts
from mlxd.server.progress import answer
from mlxd.server.pull import named, streamed

Json = dict[str, Any]
_CREATES = frozenset({"model", "name", "from", "stream"})


class Copy:
    """Another name for a model; its files are not copied."""

    render_error: Render = staticmethod(in_ollama)

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        policies = policies_of(request)
        source, destination = await read_json(request, policies, _source_and_destination)
        request[MODEL] = source
        await _copied(self._parts, request, source, destination)
        return web.Response()


class Delete:
    """Takes a name away, or a pulled model with all its files."""

    render_error: Render = staticmethod(in_ollama)

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        policies = policies_of(request)
        name = await read_json(request, policies, lambda body: named(body, "model", "name"))
        request[MODEL] = name
        await self._parts.library.delete(name, policies)
        return web.Response()


class Create:
    """A model `from` another is another name for it."""

    render_error: Render = staticmethod(in_ollama)

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        policies = policies_of(request)
        source, destination, stream = await read_json(request, policies, _created)
        request[MODEL] = source
        card = await _copied(self._parts, request, source, destination)
        return await answer(request, _lines(card), stream=stream)


async def _copied(
    parts: Parts, request: web.BaseRequest, source: str, destination: str
) -> ModelCard:
    """Raises InvalidRequest; ModelNotFound in the words of Ollama's copy."""
    try:
        return await parts.library.copy(source, destination, policies_of(request))
    except ModelNotFound as error:
        error.message = f'model "{source}" not found'
        raise


async def _lines(card: ModelCard) -> AsyncIterator[Progress]:
    yield Progress(f"using existing layer sha256:{card.digest}")
    yield Progress("writing manifest")
    yield Progress("success")


def _source_and_destination(body: Json) -> tuple[str, str]:
    return named(body, "source"), named(body, "destination")


def _created(body: Json) -> tuple[str, str, bool]:
    name = named(body, "model", "name")
    more = sorted(key for key, value in body.items() if key not in _CREATES and value)
    if more:
        raise UnsupportedFeature(
            f"{more[0]}: a model is not built here; /api/create takes `from`, the name of a model,"
            " and gives it one more name. Sampling, templates and adapters are set in models.yaml",
            param=more[0],
        )
    if not body.get("from"):
        raise InvalidRequest("neither 'from' or 'files' was specified", param="from")
    return named(body, "from"), name, streamed(body)
