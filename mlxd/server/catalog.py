"""Lists models, in each dialect: tags, ps, /v1/models, /api/models/{name}."""

from __future__ import annotations

import math
from typing import Any
from urllib.parse import unquote

from aiohttp import web

from mlxd import __version__
from mlxd.control.model_files import count_of
from mlxd.control.reading import readable
from mlxd.control.resident import Resident
from mlxd.core.counts import short
from mlxd.core.errors import InvalidRequest, MlxdError, ModelNotFound
from mlxd.core.models import ModelCard
from mlxd.dialects.ollama import SPOKEN_VERSION
from mlxd.server.answers import iso, json_response
from mlxd.server.edge import ID, policies_of
from mlxd.server.endpoints import PartsEndpoint
from mlxd.server.errors import Render, error_body, in_openai
from mlxd.server.parts import Parts
from mlxd.server.usable import is_usable, look_up, usable

Json = dict[str, Any]
_FAR_SECONDS = 100.0 * 365 * 86400
"""Added to now for a model that never expires: any far date does."""


class Tags(PartsEndpoint):
    """/api/tags: the newest first, the guide last."""

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        *own, guide = await self._parts.catalog.cards(policies_of(request))
        own.sort(key=lambda card: -card.modified)
        return json_response({"models": [_tag(card) for card in usable([*own, guide], request)]})


class Ps(PartsEndpoint):
    """/api/ps: what is in memory, the longest-lived first."""

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        residency = self._parts.residency
        residents = (r for r in residency.residents() if is_usable(r.card, request))
        loaded = [r for r in residents if residency.worker_of(r)]
        loaded.sort(key=lambda r: -r.expires_wall)
        now = self._parts.clock.wall()
        return json_response({"models": [_process(resident, now) for resident in loaded]})


class Version(PartsEndpoint):
    """/api/version."""

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        return json_response({"version": SPOKEN_VERSION, "mlxd": __version__})


class Model(PartsEndpoint):
    """/api/models/{name}."""

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        name = unquote(request.path.removeprefix("/api/models/"))
        card = await look_up(self._parts.catalog, name, request)
        residency = self._parts.residency
        loaded = {r.spec for r in residency.residents() if residency.worker_of(r)}
        return json_response(
            {
                "name": readable(card.name),
                "path": readable(_folder_name(card)),
                "exists": True,
                "loaded": card.spec in loaded,
                "alias_of": card.name if name.lower() != card.name.lower() else None,
                "size": card.size_bytes,
                "digest": card.digest,
                "context_length": card.context,
                "quantization": card.quantization,
                "parameters": card.parameters,
                **names_of(card),
            }
        )


class OpenAIModels:
    """/v1/models and /v1/models/{id}."""

    render_error: Render = staticmethod(in_openai)

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        name = unquote(request.path.removeprefix("/v1/models").removeprefix("/"))
        if name:
            return json_response(_openai_model(await look_up(self._parts.catalog, name, request)))
        cards = usable(await self._parts.catalog.cards(policies_of(request)), request)
        served = [_openai_model(card) for card in cards if not card.unavailable]
        return json_response({"object": "list", "data": served})


class Nowhere:
    """A path that is not served. Raises nothing: it answers in the caller's dialect."""

    def __init__(self, render: Render, *, allow: str = "") -> None:
        self.render_error = render
        self._allow = allow

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        headers = {"Allow": self._allow} if self._allow else {}
        status, words = (405, "method not allowed") if self._allow else (404, "page not found")
        if not request.path.startswith("/v1/"):
            return web.Response(status=status, text=f"{status} {words}", headers=headers)
        body = error_body(self._error(request), self.render_error, request[ID])
        if "code" in body["error"]:
            body["error"]["code"] = "method_not_supported" if self._allow else "unknown_url"
            body["error"]["param"] = None
        response = json_response(body, status=status)
        response.headers.update(headers)
        return response

    def _error(self, request: web.BaseRequest) -> MlxdError:
        if self._allow:
            return InvalidRequest(f"{request.method} is not allowed here: {self._allow} is")
        error = ModelNotFound(request.path)
        error.message = f"there is no {request.path}"
        return error


def details_of(card: ModelCard) -> Json:
    """What Ollama shows of a model wherever it is listed."""
    return {
        "parent_model": readable(card.copy_of),
        "format": "safetensors",
        "family": card.family,
        "families": [card.family],
        "parameter_size": short(card.parameters),
        "quantization_level": card.quantization,
        "context_length": card.context,
        "embedding_length": count_of(card.config, "hidden_size") or 0,
    }


def _tag(card: ModelCard) -> Json:
    name = _tagged(card.name)
    entry: Json = {
        "name": name,
        "model": name,
        "modified_at": iso(card.modified),
        "size": card.size_bytes,
        "digest": card.digest,
        "details": details_of(card),
        "capabilities": list(card.capabilities),
    }
    if card.unavailable:
        entry["unavailable"] = card.unavailable
    return entry


def _process(resident: Resident, now: float) -> Json:
    card = resident.card
    expires = resident.expires_wall if resident.leases == 0 else now + resident.keep_alive
    return {
        "name": _tagged(card.name),
        "model": _tagged(card.name),
        "size": card.size_bytes,
        "digest": card.digest,
        "details": details_of(card),
        "expires_at": iso(now + _FAR_SECONDS if math.isinf(expires) else expires),
        "size_vram": card.size_bytes,
        "context_length": card.context,
    }


def names_of(card: ModelCard) -> Json:
    """What else it answers to, and where it was found; mlxd's own keys."""
    return {
        "short_name": card.short_name or None,
        "aliases": list(card.aliases),
        "source": card.source,
    }


def _folder_name(card: ModelCard) -> str:
    """In a hub's cache the folder has the name of a revision, which says nothing."""
    whole = card.name if card.source == "huggingface" else card.path
    return whole.rpartition("/")[2]


def _openai_model(card: ModelCard) -> Json:
    return {
        "id": readable(card.name),
        "object": "model",
        "created": int(card.modified),
        "owned_by": card.name.partition("/")[0] if "/" in card.name else "library",
    }


def _tagged(name: str) -> str:
    """Ollama's clients expect a tag on every name."""
    shown = readable(name)
    return shown if ":" in shown.rpartition("/")[2] else f"{shown}:latest"
