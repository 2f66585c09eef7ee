"""What comes before a body: paths, queries and headers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import Mock

from aiohttp import web
from aiohttp.http import HttpRequestParser
from aiohttp.http_exceptions import BadHttpMessage

from mlxd.core.errors import MlxdError
from mlxd.dialects.base import to_json
from mlxd.dialects.keep_alive import parse_duration
from mlxd.dialects.ollama.create import digest_of
from mlxd.policy.files import PolicyFiles
from mlxd.policy.load import judge
from mlxd.policy.policy_set import PolicySet
from mlxd.server import anthropic_models, edge, events, generate, kept_responses, walls
from mlxd.server.errors import STATUS, error_response, given_id, in_ollama, words_for
from mlxd.server.identity import Identity
from tests.fuzz.target import Target, flaw_in_words

_CLIENTS = (
    b"schema: mlxd/v1\ntrusted_proxies: [127.0.0.1, 10.0.0.0/8, '::1']\nauth: {required: true}\n"
)
_SEEDS = (
    b"GET /api/events?since=5&types=load,evict\nHost: localhost:11435\nLast-Event-ID: 7",
    b"POST /v1/responses/r?limit=0000000012&after=x&order=asc\nAuthorization: Bearer mlxd-abc",
    b"POST /api/chat\nX-Request-Priority: high\nX-Request-Id: abc\nX-Stainless-Retry-Count: 1",
    b"GET /v1/models/a%2Fb?limit=5&after_id=a&before_id=b\nanthropic-version: 1\nx-api-key: abc",
    b"GET /\nOrigin: https://example.com\nHost: [::1]:80\nX-Forwarded-For: 1.2.3.4, [::1]:9, x",
    b"OPTIONS /api/tags\nOrigin: null\nAccess-Control-Request-Headers: a, b",
    b"POST /api/chat\nContent-Encoding: gzip\nContent-Length: 5\nExpect: 100-continue\nAccept: */*",
    b"POST /api/chat\nAccept-Encoding: gzip;q=1, *;q=0\nRange: bytes=0-5,7-\nIf-Match: \"x\"",
    b"POST /api/blobs/sha256:00\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b71-01",
)  # fmt: skip


def requests() -> Target:
    """A request's line, and its headers, a line each."""
    policies, parsing = judge(PolicyFiles(contents={"clients.yaml": _CLIENTS})), _Parsing()

    def run(case: bytes) -> None:
        request = parsing.request(case)
        for read in _readers(policies):
            try:
                read(request)
            except MlxdError as error:
                _check(error, request)
        given_id(request.headers.get("X-Request-Id", ""))
        digest_of(request.path)
        walls.preflight(request)

    words = [line.partition(b":")[0] + b": " for seed in _SEEDS for line in seed.split(b"\n")[1:]]
    more = [
        b"%2e%2e%2f",
        b"%00",
        b"127.0.0.1",
        b"::ffff:1.2.3.4",
        b"fe80::1%eth0",
        b"Bearer  ",
        b"00000000" + b"1" * 5000,
    ]
    return Target("requests", run, (_NoRequestError,), _SEEDS, [*words, *more], ("/mlxd/",), True)


def durations() -> Target:
    """Text of `keep_alive`."""

    def run(case: bytes) -> None:
        parse_duration(case.decode("utf-8", "replace"))

    return Target(
        "durations", run, (MlxdError, ValueError), [b"5m", b"-1", b"1h30m5.5s", b"1e3", b"100ns"],
        [b"h", b"ms", b"us", b"-", b"+", b"."], parse_errors_may_quote=True,
    )  # fmt: skip


class _NoRequestError(Exception):
    """No parser of requests lets it through."""


class _Parsing:
    """The parser of the daemon's connections."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._protocol = Mock(peername=("127.0.0.1", 5), sockname=("127.0.0.1", 6))

    def request(self, case: bytes) -> web.BaseRequest:
        """Raises _NoRequestError."""
        line, *headers = case.split(b"\n")
        if not any(header.lower().startswith(b"host:") for header in headers):
            headers.append(b"Host: localhost")
        raw = b"\r\n".join((line + b" HTTP/1.1", *filter(None, headers), b"", b""))
        parser = HttpRequestParser(
            self._protocol, self._loop, 2**16, max_line_size=8190, max_field_size=8190,
            max_headers=128, payload_exception=web.RequestPayloadError,
        )  # fmt: skip
        try:
            messages, _, _ = parser.feed_data(raw)
        except BadHttpMessage as error:
            raise _NoRequestError from error
        if not messages:
            raise _NoRequestError
        message, payload = messages[0]
        return web.BaseRequest(message, payload, self._protocol, Mock(), Mock(), self._loop)

    def __del__(self) -> None:
        self._loop.close()


def _readers(policies: PolicySet) -> Iterator[Callable[[web.BaseRequest], Any]]:
    identity = Identity(_NoKeys())  # type: ignore[arg-type]
    yield lambda request: walls.check_headers(request, policies)
    yield lambda request: walls.check_host(request, policies, _nothing)
    yield lambda request: walls.origin_of(request, policies, _nothing)
    yield lambda request: identity.identify(request, policies, 0.0)
    yield events._since
    yield events._types
    yield generate._priority_of
    yield edge._request_id
    yield lambda request: edge.path_of(request.path)
    yield lambda request: kept_responses._limit(request.query)
    yield lambda request: anthropic_models.page([{"id": "a"}, {"id": "b"}], request.query)


def _nothing(rule: str) -> None:
    """Is told what is on trial."""


class _NoKeys:
    """Knows no key."""

    certain = True

    def find(self, secret: str) -> None:
        """What is not text is no key either."""
        assert secret.encode("utf-8", "surrogateescape")

    def over(self, secret: str) -> str:
        """It was none before, either."""
        return ""


def _check(error: MlxdError, request: web.BaseRequest) -> None:
    assert 400 <= STATUS[error.code] < 500
    flaw = flaw_in_words(error.message, quotes=True)
    assert not flaw, flaw
    response = error_response(error, words_for(request), "abc")
    for name, value in response.headers.items():
        assert "\n" not in value, name
        assert "\r" not in value, name
    to_json(in_ollama(error))
