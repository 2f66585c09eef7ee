"""What is left, in headers."""

from __future__ import annotations

import re

import pytest

from mlxd.control.rates import RateState
from mlxd.server.ratelimits import Api, headers_of

CLIENT = RateState("per-client", 30, 60.0, 4, 7.2)
HOUR = RateState("hour", 100, 3600.0, 90, 3000.0)
TOKENS = RateState("tenant:a:tokens", 200_000, 60.0, 0, 11.0, "tokens")
DAY = RateState("tenant:a:daily_tokens", 5_000_000, 86_400, 0, 4000.5, "tokens")
QUEUE = RateState("queue", 20, 0.0, 18, 0.0, "concurrent-requests")


def test_each_rule_is_an_item() -> None:
    headers = headers_of([CLIENT, HOUR, DAY, QUEUE], "ollama", 0.0)
    assert headers == {
        "RateLimit-Policy": '"per-client";q=30;w=60, "hour";q=100;w=3600, '
        '"tenant:a:daily_tokens";q=5000000;w=86400;qu="tokens", '
        '"queue";q=20;qu="concurrent-requests"',
        "RateLimit": '"per-client";r=4;t=8, "hour";r=90;t=3000, '
        '"tenant:a:daily_tokens";r=0;t=4001, "queue";r=18',
    }


def test_openais_are_of_what_leaves_least() -> None:
    headers = headers_of([HOUR, CLIENT, TOKENS, DAY, QUEUE], "openai", 0.0)
    assert {name: value for name, value in headers.items() if name.startswith("x-")} == {
        "x-ratelimit-limit-requests": "30",
        "x-ratelimit-remaining-requests": "4",
        "x-ratelimit-reset-requests": "8s",
        "x-ratelimit-limit-tokens": "5000000",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "4001s",
    }


def test_anthropics_tell_dates() -> None:
    headers = headers_of([CLIENT, TOKENS], "anthropic", 0.3)
    assert {name: value for name, value in headers.items() if name.startswith("anthropic")} == {
        "anthropic-ratelimit-requests-limit": "30",
        "anthropic-ratelimit-requests-remaining": "4",
        "anthropic-ratelimit-requests-reset": "1970-01-01T00:00:08Z",
        "anthropic-ratelimit-tokens-limit": "200000",
        "anthropic-ratelimit-tokens-remaining": "0",
        "anthropic-ratelimit-tokens-reset": "1970-01-01T00:00:12Z",
    }


@pytest.mark.parametrize("api", ["openai", "anthropic", "ollama"])
def test_without_rules_there_are_no_headers(api: Api) -> None:
    assert headers_of([], api, 0.0) == {}


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("per-client", '"per-client"'),
        ('a "quoted" \\ one', '"a \\"quoted\\" \\\\ one"'),
        ("Zürich, 50%", '"Z%C3%BCrich, 50%25"'),
        ("line\r\nSet-Cookie: x", '"line%0D%0ASet-Cookie: x"'),
        ("half \ud800 a pair", '"half ? a pair"'),
    ],
)
def test_a_name_is_a_string_of_a_structured_field(name: str, written: str) -> None:
    headers = headers_of([RateState(name, 1, 1.0, 1, 0.0)], "ollama", 0.0)
    assert headers["RateLimit"] == f"{written};r=1;t=0"
    assert re.fullmatch(r'"(?:[ !#-\[\]-~]|\\["\\])*";q=1;w=1', headers["RateLimit-Policy"])


def test_numbers_are_what_the_fields_take() -> None:
    state = RateState("x", 10**20, 0.25, 10**20, 0.01)
    headers = headers_of([state], "ollama", 0.0)
    assert headers["RateLimit-Policy"] == '"x";q=999999999999999;w=1'
    assert headers["RateLimit"] == '"x";r=999999999999999;t=1'
