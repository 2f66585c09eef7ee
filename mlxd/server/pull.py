"""/api/pull."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from mlxd.core.errors import InvalidRequest
from mlxd.policy.load import PolicySet
from mlxd.server.edge import MODEL, policies_of
from mlxd.server.errors import Render, in_ollama
from mlxd.server.intake import read_json
from mlxd.server.parts import Parts
from mlxd.server.progress import answer

Json = dict[str, Any]


class Pull:
    """Fetches a model, or joins whoever fetches it; `insecure` and the like say nothing here."""

    render_error: Render = staticmethod(in_ollama)

    def __init__(self, parts: Parts, reading: PolicySet | None = None) -> None:
        """`reading`: the policies that bodies are read under, in place of the request's."""
        self._parts = parts
        self._reading = reading

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        policies = policies_of(request)
        name, stream = await read_json(request, self._reading or policies, _asked)
        request[MODEL] = name
        async with self._parts.puller.watch(name, policies) as lines:
            return await answer(request, lines, stream=stream)


def named(body: Json, *keys: str) -> str:
    """The first of `keys` that is said. Raises InvalidRequest."""
    for key in keys:
        value = body.get(key)
        if value is not None and not isinstance(value, str):
            raise InvalidRequest(f"{key}: expected a string", param=key)
        if value and value.strip():
            return value
    raise InvalidRequest(f"{keys[0]} is required", param=keys[0])


def streamed(body: Json) -> bool:
    """Raises InvalidRequest."""
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise InvalidRequest("stream: expected a boolean", param="stream")
    return stream is not False


def _asked(body: Json) -> tuple[str, bool]:
    return named(body, "model", "name"), streamed(body)
