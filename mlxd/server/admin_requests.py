"""What the admin socket tells of requests: the last ones, or the whole story of one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from aiohttp import web

from mlxd.core.counts import whole
from mlxd.core.errors import InvalidRequest, RequestNotFound
from mlxd.core.story import Story
from mlxd.server.action import Action, Answer
from mlxd.server.edge import policies_of
from mlxd.server.endpoints import READING, Table
from mlxd.server.parts import Parts
from mlxd.server.stories import as_json

Json = dict[str, Any]

BELOW = "/admin/requests/"
_USUAL = 20
_AT_ONCE = 100
"""Stories that are told between two turns of the event loop."""
_SLOTTED = frozenset({"answer", "embedding"})
"""What takes a slot before it waits for its model."""
_MOST_DIGITS = 6


class AdminRequests:
    """The stories on the admin socket."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def routes(self) -> Table:
        return {
            "/admin/requests": (READING, Action(self._list)),
            f"{BELOW}*": (READING, Action(self._show)),
        }

    async def _list(self, request: web.BaseRequest) -> Answer:
        wanted = whole(request.query.get("n", str(_USUAL)), _MOST_DIGITS)
        if wanted is None:
            raise InvalidRequest("n: expected a whole number", param="n")
        told = await self._all_told(self._parts.stories.newest(wanted))
        return {"requests": told}, policies_of(request).etag

    async def _show(self, request: web.BaseRequest) -> Answer:
        policies, id = policies_of(request), request.path.removeprefix(BELOW)
        found = self._parts.stories.find(id)
        if not found:
            raise RequestNotFound(
                f"no request with the id '{id[:128]}' is known: it never came, asked for no model,"
                " could not be read, repeated what was just refused, or is forgotten",
                policy=policies.line("server.stories"),
                would_pass="the X-Request-Id of one of the last requests",
            )
        return {"requests": await self._all_told(found)}, policies.etag

    async def _all_told(self, stories: Iterable[Story]) -> list[Json]:
        """There may be thousands, of one id, too: clients choose it."""
        told: list[Json] = []
        for number, story in enumerate(stories, 1):
            told.append(self._told(story))
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)
        return told

    def _told(self, story: Story) -> Json:
        return as_json(story) | {"waits": self._waits(story), "slow_prompt": self._slow(story)}

    def _slow(self, story: Story) -> str | None:
        """Why its first token is not in time, where its prompt alone says so."""
        to_read = (story.prompt_tokens - story.cached_tokens) // max(1, story.requests)
        policies = self._parts.policies.current
        return self._parts.expected.slow_prompt(story.model, to_read, policies)

    def _waits(self, story: Story) -> str | None:
        """Why one that waits for nothing else has no model yet, as of this moment."""
        queued = story.want in _SLOTTED and story.admitted is None
        if story.ended is not None or story.leased is not None or queued:
            return None
        residents = self._parts.residency.residents()
        mine = (one for one in residents if one.card.original == story.model)
        return next((one.waits.explained() for one in mine if one.waits is not None), None)
