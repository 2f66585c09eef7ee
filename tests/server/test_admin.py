"""What the admin side does beside the event loop, and what it does not."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp.test_utils import make_mocked_request

from mlxd.core.models import ModelCard
from mlxd.policy.explain import explain
from mlxd.policy.load import load
from mlxd.server import admin
from mlxd.server.admin import Admin
from mlxd.server.edge import POLICIES
from mlxd.server.parts import Parts

CARD = ModelCard("m", "/m", 1, "0" * 64, 0.0, "llama", 1, "f32", 512, held="broken", adapter="/a")


@pytest.mark.parametrize("path", ["effective", "explain"])
async def test_values_are_explained_beside_the_loop_by_what_the_loop_knows(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a catalogue is asked by two at once it may know wrongly for long."""
    asked: list[int] = []
    explaining: list[int] = []
    here = threading.get_ident()

    def known() -> list[ModelCard]:
        asked.append(threading.get_ident())
        return [CARD]

    def until_restart() -> dict[str, str]:
        asked.append(threading.get_ident())
        return {"server.stories": "7"}

    def explained(*arguments: Any) -> Any:
        explaining.append(threading.get_ident())
        return explain(*arguments)

    monkeypatch.setattr(admin, "explain", explained)
    reloader = SimpleNamespace(
        until_restart=until_restart, folder=None, last=SimpleNamespace(errors=())
    )
    catalog = SimpleNamespace(known=known)
    parts = cast("Parts", SimpleNamespace(reloader=reloader, catalog=catalog))
    other: Any = None
    request = make_mocked_request("GET", f"/admin/policy/{path}")
    request[POLICIES] = policies = load()
    act = getattr(Admin(parts, other, other, other), f"_{path}")
    body, _ = await act(request)
    values = body["values"]
    found = values if isinstance(values, dict) else {one["key"]: one for one in values}
    assert set(asked) == {here}
    assert here not in explaining
    assert len(found) == len(list(policies.leaves()))
    assert found["server.stories"]["until_restart"] == "7"
