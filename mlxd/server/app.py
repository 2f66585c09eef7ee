"""The route table."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

from aiohttp import web

from mlxd.dialects import anthropic, ollama, openai
from mlxd.dialects.base import Codec
from mlxd.server import health
from mlxd.server.account import Account, Cloud, Push
from mlxd.server.anthropic_models import AnthropicModels
from mlxd.server.blobs import PATH as BLOBS
from mlxd.server.blobs import Blob
from mlxd.server.catalog import Model, Nowhere, OpenAIModels, Ps, Tags, Version
from mlxd.server.copies import Copy, Delete
from mlxd.server.create import Create
from mlxd.server.edge import Endpoint
from mlxd.server.endpoints import ASKING, READING, REMOVING, Table
from mlxd.server.errors import in_ollama, speaks_anthropic, words_for
from mlxd.server.events import EventStream
from mlxd.server.generate import Generate
from mlxd.server.identity import ASSETS
from mlxd.server.kept_responses import KeptResponses
from mlxd.server.managers import ForManagers
from mlxd.server.openapi.endpoint import Description
from mlxd.server.page.assets import Assets, ToPage
from mlxd.server.page.session import Session
from mlxd.server.page.state import StateReport
from mlxd.server.page.token import PageToken
from mlxd.server.parts import Parts
from mlxd.server.pull import Pull
from mlxd.server.responses import Respond
from mlxd.server.show import Show

KEEPING = READING | ASKING | REMOVING


CODECS: dict[str, tuple[Callable[[], Codec], ...]] = {
    "ollama": (
        ollama.GenerateCodec, ollama.ChatCodec, ollama.EmbedCodec, ollama.EmbeddingsCodec,
    ),
    "openai": (
        openai.ChatCodec, openai.CompletionCodec, openai.EmbeddingsCodec, openai.ResponsesCodec,
        openai.InputTokensCodec,
    ),
    "anthropic": (anthropic.MessagesCodec, anthropic.CountCodec),
}  # fmt: skip
"""What has a model asked for something, by dialect."""


class Routes:
    """From method and path to an endpoint; a path ending in `/*` takes everything under it."""

    def __init__(self, table: Table, anthropics: Table | None = None) -> None:
        """`anthropics` are found first by Anthropic's clients, on paths that are OpenAI's too."""
        self._exact = {path: entry for path, entry in table.items() if not path.endswith("/*")}
        self._below = {path[:-1]: entry for path, entry in table.items() if path.endswith("/*")}
        self._anthropics = Routes(anthropics) if anthropics else None

    def __call__(self, request: web.BaseRequest) -> Endpoint:
        entry = self._entry(request)
        if entry is None:
            return Nowhere(words_for(request))
        methods, endpoint = entry
        if request.method not in methods:
            if isinstance(endpoint, KeptResponses):
                return Nowhere(words_for(request), allow=endpoint.allowed(request))
            return Nowhere(words_for(request), allow=", ".join(sorted(methods)))
        return endpoint

    def _entry(self, request: web.BaseRequest) -> tuple[frozenset[str], Endpoint] | None:
        if self._anthropics is not None and speaks_anthropic(request):
            entry = self._anthropics._entry(request)
            if entry is not None:
                return entry
        path = request.path
        if path in self._exact:
            return self._exact[path]
        return next((e for prefix, e in self._below.items() if path.startswith(prefix)), None)


def dialects() -> dict[str, str]:
    """The dialect of each path that has a model asked for something."""
    return {made().path: name for name, codecs in CODECS.items() for made in codecs}


def routes(parts: Parts, token: PageToken | None = None) -> Routes:
    """Everything that is everybody's; `token`: the page's."""
    tags, version = Tags(parts), Version(parts)
    models = OpenAIModels(parts)
    table: Table = {
        "/": (READING, health.Root(parts)),
        "/health": (READING, health.Health(parts)),
        "/livez": (READING, health.Live()),
        "/readyz": (READING, health.Ready(parts)),
        "/metrics": (READING, health.Scrape(parts)),
        "/openapi.json": (READING, Description()),
        "/queue/stats": (READING, health.Report(parts, health.queue_stats)),
        "/api/chat/mlx/metrics": (READING, health.FreshReport(parts, health.health)),
        "/api/chat/status": (READING, health.Report(parts, health.chat_status)),
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
        "/v1/responses/*": (KEEPING, KeptResponses(parts)),
    }
    for made in chain.from_iterable(CODECS.values()):
        codec = made()
        respond = Respond(parts, codec) if isinstance(codec, openai.ResponsesCodec) else None
        table[codec.path] = (ASKING, respond or Generate(parts, codec))
    table |= _page(parts, token or PageToken())
    listed = AnthropicModels(parts)
    return Routes(table, dict.fromkeys(("/v1/models", "/v1/models/*"), (READING, listed)))


def _page(parts: Parts, token: PageToken) -> Table:
    assets = Assets(Nowhere(in_ollama))
    return {
        "/ui": (READING, assets),
        "/ui/": (READING, ToPage()),
        "/ui/session": (READING, Session(token)),
        "/ui/state": (READING, StateReport(parts)),
        f"{ASSETS}*": (READING, assets),
    }
