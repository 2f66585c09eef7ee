"""What a client has left, in the headers that its API has for it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request

from mlxd.control.rates import RateState
from mlxd.policy.load import load
from mlxd.server.edge import QUOTA
from mlxd.server.generate import _note_quota


@pytest.mark.parametrize(
    ("path", "prefix", "reset"),
    [
        ("/v1/messages", "anthropic-ratelimit-requests-", "1970-01-01T00:00:07Z"),
        ("/v1/chat/completions", "x-ratelimit-", "7s"),
        ("/api/chat", "", ""),
    ],
)
def test_each_api_has_its_headers(path: str, prefix: str, reset: str) -> None:
    state = RateState("default", 10, 60.0, 4, 7.2)
    admission = SimpleNamespace(rate_states=lambda caller, policies: [state])
    parts: Any = SimpleNamespace(admission=admission, clock=SimpleNamespace(wall=lambda: 0.3))
    request = make_mocked_request("POST", path)
    _note_quota(request, parts, load())
    headers = request[QUOTA]
    assert headers["RateLimit"] == '"default";r=4;t=7'
    own = {name: value for name, value in headers.items() if "ratelimit-" in name}
    if not prefix:
        assert own == {}
        return
    assert all(name.startswith(prefix) for name in own)
    assert sorted(own.values()) == sorted(["10", "4", reset])
