"""The route table."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from aiohttp import web

from mlxd.dialects import ollama, openai
from mlxd.server import health
from mlxd.server.account import Account, Cloud, Push
from mlxd.server.blobs import PATH as BLOBS
from mlxd.server.blobs import Blob
from mlxd.server.catalog import Model, Nowhere, OpenAIModels, Ps, Tags, Version
from mlxd.server.copies import Copy, Delete
from mlxd.server.create import Create
from mlxd.server.edge import Endpoint
from mlxd.server.errors import in_ollama, in_openai
from mlxd.server.events import EventStream
from mlxd.server.generate import Generate
from mlxd.server.managers import ForManagers
from mlxd.server.parts import Parts
from mlxd.server.pull import Pull
from mlxd.server.show import Show

READING = frozenset({"GET", "HEAD"})
ASKING = frozenset({"POST"})
REMOVING = frozenset({"DELETE"})


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
        "/": (READING, health.Report(partial(health.root, parts))),
        "/health": (READING, health.Report(partial(health.health, parts))),
        "/livez": (READING, health.Live()),
        "/readyz": (READING, health.Ready(parts)),
        "/metrics": (READING, health.Scrape(parts)),
        "/queue/stats": (READING, health.Report(partial(health.queue_stats, parts))),
        "/api/chat/mlx/metrics": (READING, health.Report(partial(health.health, parts))),
        "/api/chat/status": (READING, health.Report(partial(health.chat_status, parts))),
        "/api/events": (READING, EventStream(parts)),
        "/api/version": (READING, version),
        "/api/tags": (READING, tags),
        "/api/ps": (READING, Ps(parts)),
        "/api/show": (ASKING, Show(parts)),
        "/api/pull": (ASKING, ForManagers(Pull(parts))),
        "/api/copy": (ASKING, ForManagers(Copy(parts))),
        "/api/create": (ASKING, ForManagers(Create(parts))),
        f"{BLOBS}*": (frozenset({"HEAD", "POST"}), ForManagers(Blob(parts))),
        "/api/push": (ASKING, Push(parts)),
        "/api/status": (READING, Cloud()),
        "/api/me": (ASKING, Account()),
        "/api/signout": (ASKING, Account()),
        "/api/user/keys/*": (REMOVING, Account()),
        "/api/delete": (REMOVING, ForManagers(Delete(parts))),
        "/api/models/*": (READING, Model(parts)),
        "/v1/models": (READING, models),
        "/v1/models/*": (READING, models),
    }
    for codec in (
        ollama.GenerateCodec(),
        ollama.ChatCodec(),
        openai.ChatCodec(),
        openai.CompletionCodec(),
    ):
        table[codec.path] = (ASKING, Generate(parts, codec))
    return Routes(table)
