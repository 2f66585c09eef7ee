"""What a client has left, and how busy mlxd is, in the headers that its API has for it."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request

from mlxd.control.rates import RateState
from mlxd.core.caller import Caller
from mlxd.core.errors import InvalidRequest
from mlxd.core.story import untold
from mlxd.policy.load import Override, load
from mlxd.server.edge import CALLER, QUOTA, STORY
from mlxd.server.generate import _priority_of
from mlxd.server.quota import note_quota

OF_REQUESTS = RateState("per-client", 10, 60.0, 4, 7.2)
TIGHTER = RateState("tenant", 600, 3600.0, 2, 1800.4)
ON_TRIAL: dict[str, Any] = {"limits.concurrency.mode": "dry_run"}
OF_TOKENS = RateState("tenant-tokens", 200_000, 3600.0, 1234, 1800.4, "tokens")


def headers_for(
    path: str, *states: RateState, waiting: int = 0, model: str = "m", **set: Any
) -> dict[str, str]:
    admission = SimpleNamespace(
        rate_states=lambda caller, policies, user: list(states),
        slots=5,
        free_slots=2,
        active=3,
        waiting=Counter(low=waiting),
        expected_wait=lambda klass: {"high": 0.0, "medium": 3.2, "low": 9.0}[klass],
    )
    parts: Any = SimpleNamespace(admission=admission, clock=SimpleNamespace(wall=lambda: 0.3))
    request = make_mocked_request("POST", path)
    request[CALLER] = Caller("10.0.0.1")
    request[STORY] = story = untold()
    story.model = model
    overrides = [Override(key, value, "a test") for key, value in set.items()]
    note_quota(request, parts, load(None, overrides))
    return request[QUOTA]


@pytest.mark.parametrize(
    ("path", "prefix", "reset"),
    [
        ("/v1/messages", "anthropic-ratelimit-requests-", "1970-01-01T00:00:08Z"),
        ("/v1/chat/completions", "x-ratelimit-", "8s"),
        ("/api/chat", "", ""),
    ],
)
def test_each_api_has_its_headers(path: str, prefix: str, reset: str) -> None:
    headers = headers_for(path, OF_REQUESTS)
    own = {name: value for name, value in headers.items() if "ratelimit-" in name}
    assert all(name.startswith(prefix) for name in own)
    assert sorted(own.values()) == (sorted(["10", "4", reset]) if prefix else [])


def test_every_rule_is_an_item_and_so_is_the_queue() -> None:
    more: dict[str, Any] = {"limits.concurrency.max_waiting": "20"}
    headers = headers_for("/api/chat", OF_REQUESTS, TIGHTER, OF_TOKENS, waiting=7, **more)
    assert headers["RateLimit-Policy"] == (
        '"per-client";q=10;w=60, "tenant";q=600;w=3600,'
        ' "tenant-tokens";q=200000;w=3600;qu="tokens",'
        ' "queue";q=25;qu="concurrent-requests"'
    )
    assert headers["RateLimit"] == (
        '"per-client";r=4;t=8, "tenant";r=2;t=1801, "tenant-tokens";r=1234;t=1801, "queue";r=15'
    )


def test_a_limit_on_trial_is_no_promise() -> None:
    headers = headers_for("/api/chat", **ON_TRIAL)
    assert "RateLimit" not in headers
    assert "RateLimit-Policy" not in headers


@pytest.mark.parametrize(
    ("path", "tokens", "requests"),
    [
        ("/v1/chat/completions", "x-ratelimit-remaining-tokens", "x-ratelimit-limit-requests"),
        (
            "/v1/messages",
            "anthropic-ratelimit-tokens-remaining",
            "anthropic-ratelimit-requests-limit",
        ),
    ],
)
def test_of_each_unit_the_tightest_rule_is_told(path: str, tokens: str, requests: str) -> None:
    headers = headers_for(path, OF_REQUESTS, TIGHTER, OF_TOKENS)
    assert (headers[tokens], headers[requests]) == ("1234", "600")


def test_the_load_is_told_for_the_class_of_the_request() -> None:
    headers = headers_for("/api/chat")
    assert headers["X-Mlxd-Free-Slots"] == "2"
    assert headers["X-Mlxd-Expected-Wait"] == "4"
    assert headers["X-Mlxd-Priority"] == "medium"


def test_who_asked_for_no_model_that_there_is_had_no_class() -> None:
    assert "X-Mlxd-Priority" not in headers_for("/api/chat", model="")


@pytest.mark.parametrize(
    ("said", "meant"),
    [("High", "high"), (" low ", "low"), ("medium", "medium"), ("", None), ("1", "high")],
)
def test_a_header_asks_for_a_class(said: str, meant: str | None) -> None:
    request = make_mocked_request("POST", "/api/chat", headers={"X-Request-Priority": said})
    assert _priority_of(request) == meant


def test_a_word_that_is_no_class_is_refused_with_those_that_are() -> None:
    request = make_mocked_request("POST", "/api/chat", headers={"X-Request-Priority": "urgent"})
    with pytest.raises(InvalidRequest, match="'urgent' names no class; it may be high, medium"):
        _priority_of(request)
