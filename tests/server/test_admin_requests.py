"""The list of stories, however many policy keeps."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp.test_utils import make_mocked_request

from mlxd.control.stories import Stories
from mlxd.core.caller import Caller
from mlxd.core.clock import ManualClock
from mlxd.core.story import Story
from mlxd.policy.load import Override, load
from mlxd.policy.store import PolicyStore
from mlxd.server.admin_requests import AdminRequests
from mlxd.server.edge import POLICIES
from mlxd.server.parts import Parts


@pytest.mark.parametrize("target", ["/admin/requests?n=2000", "/admin/requests/same"])
async def test_others_get_their_turns_while_thousands_of_stories_are_told(target: str) -> None:
    """Clients may give all their requests one id."""
    policies = load(None, [Override("server.stories", "2000", "a test")])
    clock, stories = ManualClock(), Stories(policies)
    for number in range(2000):
        story = Story("same", "/p", Caller("c"), 1, 0.0, clock.monotonic, float(number))
        story.cost = float(number)
        stories.begin(story)
        stories.end(story, 200)
    expected = SimpleNamespace(slow_prompt=lambda *_: None)
    parts = SimpleNamespace(stories=stories, expected=expected, policies=PolicyStore(policies))
    request = make_mocked_request("GET", target)
    request[POLICIES] = policies
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    beside = asyncio.create_task(others())
    requests = AdminRequests(cast("Parts", parts))
    listing: Any = requests._list(request) if "?" in target else requests._show(request)
    body, _ = await listing
    beside.cancel()
    assert [one["cost"] for one in body["requests"]] == list(range(1999, -1, -1))
    assert turns >= 15
