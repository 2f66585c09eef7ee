"""Requests' stories at the edge: begun once it is known what is asked, and written for others."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from mlxd.core.story import Fact, Note, Story
from mlxd.dialects.base import Call
from mlxd.server.edge import STORY
from mlxd.server.parts import Parts

Json = dict[str, Any]

_UNTOLD = frozenset({"id", "caller", "clock", "came", "wall", "notes", "growing", "trace", "legs"})
"""Told otherwise, or not at all."""


def begin(request: web.BaseRequest, parts: Parts, call: Call) -> None:
    """What it asks is read: from now on its story is kept."""
    story, asked = request[STORY], call.request
    story.want = asked.want if call.action == "generate" else call.action
    story.stream = asked.stream
    story.requests = len(call.requests)
    story.max_tokens = asked.max_tokens
    story.note("asked")
    parts.stories.begin(story)


def as_json(story: Story) -> Json:
    """All of it. Of what a rate counts by in a caller's headers nothing is told."""
    caller = story.caller
    facts = {name: _short(getattr(story, name)) for name in Story.__slots__ if name not in _UNTOLD}
    return {
        "id": story.id,
        "at": story.wall,
        "client": {"address": caller.address, "key": caller.key, "tenant": caller.tenant},
        **facts,
        "completion_tokens": story.told_so_far,
        "notes": [_note(note) for note in story.notes],
    }


def _note(note: Note) -> Json:
    facts = {name: _short(fact) for name, fact in note.facts.items()}
    return {"after": round(note.after, 4), "what": note.what, "facts": facts}


def _short(fact: Fact) -> Fact:
    return round(fact, 4) if isinstance(fact, float) else fact
