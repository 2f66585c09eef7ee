"""The route table, and the listener."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from functools import partial

from aiohttp import web

from mlxd.dialects import ollama, openai
from mlxd.server import health
from mlxd.server.catalog import Model, Nowhere, OpenAIModels, Ps, Show, Tags, Version
from mlxd.server.connections import GuardedServer
from mlxd.server.edge import Edge, Endpoint
from mlxd.server.errors import in_ollama, in_openai
from mlxd.server.generate import Generate
from mlxd.server.parts import Parts

_READING = frozenset({"GET", "HEAD"})
_ASKING = frozenset({"POST"})


class Routes:
    """From method and path to an endpoint; a path ending in `/*` takes everything under it."""

    def __init__(self, table: Mapping[str, tuple[frozenset[str], Endpoint]]) -> None:
        self._exact = {path: entry for path, entry in table.items() if not path.endswith("/*")}
        self._below = {path[:-1]: entry for path, entry in table.items() if path.endswith("/*")}

    def __call__(self, request: web.BaseRequest) -> Endpoint:
        path = request.path
        entry = self._exact.get(path)
        if entry is None:
            entry = next((e for prefix, e in self._below.items() if path.startswith(prefix)), None)
        render = in_openai if path.startswith("/v1/") else in_ollama
        if entry is None:
            return Nowhere(render)
        methods, endpoint = entry
        if request.method not in methods:
            return Nowhere(render, allow=", ".join(sorted(methods)))
        return endpoint


def routes(parts: Parts) -> Routes:
    """Everything that is served."""
    tags, version = Tags(parts), Version(parts)
    models = OpenAIModels(parts)
    table: dict[str, tuple[frozenset[str], Endpoint]] = {
        "/": (_READING, health.Report(partial(health.root, parts))),
        "/health": (_READING, health.Report(partial(health.health, parts))),
        "/livez": (_READING, health.Live()),
        "/readyz": (_READING, health.Ready(parts)),
        "/queue/stats": (_READING, health.Report(partial(health.queue_stats, parts))),
        "/api/chat/mlx/metrics": (_READING, health.Report(partial(health.health, parts))),
        "/api/chat/status": (_READING, health.Report(partial(health.chat_status, parts))),
        "/api/version": (_READING, version),
        "/api/tags": (_READING, tags),
        "/api/ps": (_READING, Ps(parts)),
        "/api/show": (_ASKING, Show(parts)),
        "/api/models/*": (_READING, Model(parts)),
        "/v1/models": (_READING, models),
        "/v1/models/*": (_READING, models),
    }
    for codec in (
        ollama.GenerateCodec(),
        ollama.ChatCodec(),
        openai.ChatCodec(),
        openai.CompletionCodec(),
    ):
        table[codec.path] = (_ASKING, Generate(parts, codec))
    return Routes(table)


class Listener:
    """The server on its port."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._runner: web.ServerRunner | None = None
        self._site: web.BaseSite | None = None

    async def open(self, sock: socket.socket) -> None:
        """Serve on a bound socket."""
        edge = Edge(self._parts, routes(self._parts))
        server = GuardedServer(edge, self._parts.policies, self._parts.clock)
        self._runner = web.ServerRunner(server, shutdown_timeout=0.5)
        await self._runner.setup()
        backlog = self._parts.policies.current.server.listen.backlog
        self._site = web.SockSite(self._runner, sock, backlog=backlog)
        await self._site.start()

    async def stop_accepting(self) -> None:
        """New connections are refused; those that are open go on."""
        if self._site is not None:
            await self._site.stop()
            self._site = None

    async def close(self) -> None:
        """End every connection, whatever it is doing."""
        await self.stop_accepting()
        if self._runner is not None:
            await self._runner.cleanup()
