"""/v1/models and /v1/models/{id}, as Anthropic's clients read them: a page at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

from aiohttp import web

from mlxd.control.reading import readable
from mlxd.core.counts import whole
from mlxd.core.errors import InvalidRequest
from mlxd.core.models import ModelCard
from mlxd.policy.schema.limits import Tokens
from mlxd.server.answers import iso, json_response
from mlxd.server.edge import policies_of
from mlxd.server.errors import Render, in_anthropic
from mlxd.server.parts import Parts
from mlxd.server.usable import look_up, usable

Json = dict[str, Any]
_PAGE = 20
_LARGEST_PAGE = 1000
_MOST_DIGITS = 4


class AnthropicModels:
    """For who sends `anthropic-version`; others get OpenAI's list."""

    render_error: Render = staticmethod(in_anthropic)

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        policies = policies_of(request)
        tokens = policies.limits.tokens
        name = unquote(request.path.removeprefix("/v1/models").removeprefix("/"))
        if name:
            card = await look_up(self._parts.catalog, name, request)
            return json_response(_model(card, tokens))
        cards = usable(await self._parts.catalog.cards(policies), request)
        served = [_model(card, tokens) for card in cards if not card.unavailable]
        return json_response(page(served, request.query))


def page(models: Sequence[Json], query: Any) -> Json:
    """What `limit`, `after_id` and `before_id` choose. Raises InvalidRequest."""
    limit = _limit(query.get("limit", ""))
    ids = [model["id"] for model in models]
    if after := query.get("after_id"):
        rest = models[_place(ids, after, "after_id") + 1 :]
        chosen, more = rest[:limit], len(rest) > limit
    elif before := query.get("before_id"):
        rest = models[: _place(ids, before, "before_id")]
        chosen, more = rest[-limit:], len(rest) > limit
    else:
        chosen, more = models[:limit], len(models) > limit
    return {
        "data": list(chosen),
        "has_more": more,
        "first_id": chosen[0]["id"] if chosen else None,
        "last_id": chosen[-1]["id"] if chosen else None,
    }


def _limit(text: str) -> int:
    if not text:
        return _PAGE
    limit = whole(text, _MOST_DIGITS)
    if limit is None or not 1 <= limit <= _LARGEST_PAGE:
        raise InvalidRequest(f"limit must be between 1 and {_LARGEST_PAGE}", param="limit")
    return limit


def _place(ids: Sequence[str], id: str, name: str) -> int:
    if id not in ids:
        raise InvalidRequest(f"{name}: there is no model of this id in the list", param=name)
    return ids.index(id)


def _model(card: ModelCard, tokens: Tokens) -> Json:
    """Agents shorten a conversation in time by these figures."""
    name = readable(card.name)
    enforced = tokens.mode == "enforce"
    return {
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": iso(int(card.modified)),
        "lifecycle": "active",
        "max_input_tokens": min(card.context, tokens.max_prompt) if enforced else card.context,
        "max_tokens": min(card.context, tokens.max_output),
    }
