"""What Ollama's clients ask of ollama.com through a daemon: here are no accounts and no cloud."""

from __future__ import annotations

from aiohttp import web

from mlxd.core.errors import UnsupportedFeature
from mlxd.server.answers import json_response
from mlxd.server.edge import policies_of
from mlxd.server.endpoints import PartsEndpoint
from mlxd.server.errors import Render, in_ollama
from mlxd.server.intake import read_json
from mlxd.server.pull import named
from mlxd.server.usable import look_up


class Push(PartsEndpoint):
    """/api/push."""

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        policies = policies_of(request)
        name = await read_json(request, policies, lambda body: named(body, "model", "name"))
        await look_up(self._parts.catalog, name, request)
        raise UnsupportedFeature(f"{name} is not pushed: mlxd sends no model to anybody")


class Account:
    """/api/me, /api/signout, /api/user/keys/KEY: nobody is signed in, and nobody can be."""

    render_error: Render = staticmethod(in_ollama)

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        words = "you are not signed in: mlxd has no accounts, and runs models on this machine alone"
        return json_response({"error": words, "signin_url": ""}, status=401)


class Cloud:
    """/api/status."""

    render_error: Render = staticmethod(in_ollama)

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        return json_response({"cloud": {"disabled": True, "source": "none"}})
