"""/api/pull."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from aiohttp import web

from mlxd.control.progress import Progress
from mlxd.core.errors import InvalidRequest, MlxdError, ModelNotFound
from mlxd.core.models import without_library
from mlxd.policy.policy_set import PolicySet
from mlxd.server.edge import MODEL, STREAM, policies_of
from mlxd.server.errors import Render, in_ollama
from mlxd.server.intake import read_json
from mlxd.server.parts import Parts
from mlxd.server.progress import answer
from mlxd.server.usable import check_for

Json = dict[str, Any]


class Pull:
    """Fetches a model, or joins whoever fetches it; `insecure` and the like say nothing here."""

    render_error: Render = staticmethod(in_ollama)

    def __init__(self, parts: Parts, reading: PolicySet | None = None) -> None:
        """`reading`: the policies that bodies are read under, in place of the request's, where an
        administrator asks.
        """
        self._parts = parts
        self._reading = reading

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        policies = policies_of(request)
        name, stream = await read_json(request, self._reading or policies, _asked)
        request[MODEL] = name
        if self._reading is None:
            await self._check(request, name, policies)
        try:
            async with self._parts.puller.watch(name, policies) as lines:
                return await answer(request, lines, stream=stream)
        except ModelNotFound as error:
            of_hub = "/" in without_library(name)
            if of_hub or STREAM in request or not await self._is_served(name, policies):
                raise error
        return await answer(request, _at_once(), stream=stream)

    async def _check(self, request: web.BaseRequest, name: str, policies: PolicySet) -> None:
        """A pull replaces what is there, and gives a name away. Raises Forbidden."""
        names, meant = await self._parts.catalog.refreshed(policies), [name]
        with suppress(ModelNotFound):
            meant.append(self._parts.puller.repository(name))
        for card in filter(None, map(names.find, meant)):
            check_for(request)(card)

    async def _is_served(self, name: str, policies: PolicySet) -> bool:
        """Scripts pull before they ask: a model of the operator's own is there."""
        try:
            await self._parts.catalog.look_up(name, policies)
        except MlxdError:
            return False
        return True


async def _at_once() -> AsyncIterator[Progress]:
    yield Progress("pulling manifest")
    yield Progress("success")


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
