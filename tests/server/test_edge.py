import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp.test_utils import make_mocked_request

from mlxd.core.errors import Forbidden, HeadersTooLarge
from mlxd.core.story import untold
from mlxd.policy.load import Override, load
from mlxd.server.edge import (
    ID,
    MARKS,
    POLICIES,
    STORY,
    Edge,
    Marks,
    _path_of,
    _preflight,
    common_headers,
    host_allowed,
    origin_allowed,
)
from mlxd.server.errors import in_ollama
from mlxd.server.parts import Parts

HOSTS = load().clients.hosts.allow
ORIGINS = load().clients.cors.allow_origins


@pytest.mark.parametrize(
    "host",
    ["", "localhost", "a.localhost", "mac.local", "host.docker.internal", "127.0.0.1", "[::1]",
     "127.9.9.9", "0.0.0.0", "192.168.1.7", "10.0.0.3", "[fe80::1]"],
)  # fmt: skip
def test_this_machine_and_its_containers_may_ask(host):
    assert host_allowed(host, HOSTS)


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "8.8.8.8", "127.0.0.1.evil.example", "[::g]"]
)
def test_a_name_that_a_stranger_can_point_here_may_not(host):
    assert not host_allowed(host, HOSTS)


@pytest.mark.parametrize(
    "origin",
    ["http://localhost:3000", "http://localhost", "https://127.0.0.1:8443", "app://obsidian.md",
     "vscode-webview://x", "chrome-extension://abc"],
)  # fmt: skip
def test_local_pages_and_apps_may_ask(origin):
    assert origin_allowed(origin, ORIGINS)


@pytest.mark.parametrize(
    "origin", ["null", "https://evil.example", "http://localhost.evil.example", "http://localhostx"]
)
def test_foreign_pages_may_not(origin):
    assert not origin_allowed(origin, ORIGINS)


EDGE = Edge(cast("Parts", None), cast("Any", None))


def asked(*overrides, **headers):
    """A request with these headers, under these policies."""
    policies = load(None, [Override(key, text, "a test") for key, text in overrides])
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    request = make_mocked_request("GET", "/", headers=names)
    request[ID] = "1"
    request[POLICIES] = policies
    request[MARKS] = Marks(lambda _: None)
    request[STORY] = untold()
    return request


@pytest.mark.parametrize("host", ["localhost", "foo.localhost", "::ffff:127.0.0.1", "127.8.8.8"])
def test_the_host_is_checked_wherever_policy_says_loopback(host):
    with pytest.raises(Forbidden):
        EDGE._check_host(asked(("server.listen.host", host), Host="evil.example"))


@pytest.mark.parametrize(("mode", "marks"), [("dry_run", ["hosts"]), ("off", [])])
def test_a_host_that_would_be_refused_is_marked_in_a_dry_run_only(mode, marks):
    request = asked(("clients.hosts.mode", mode), Host="evil.example")
    EDGE._check_host(request)
    assert request[MARKS].rules == marks
    assert common_headers(request).get("X-Mlxd-Would-Deny", "") == ", ".join(marks)


@pytest.mark.parametrize(("mode", "marks"), [("dry_run", ["cors"]), ("off", [])])
def test_an_origin_that_would_be_refused_may_ask_in_a_dry_run(mode, marks):
    request = asked(("clients.cors.mode", mode), Origin="https://evil.example")
    EDGE._check_origin(request)
    assert request[MARKS].rules == marks
    assert common_headers(request)["Access-Control-Allow-Origin"] == "https://evil.example"


def test_an_allowed_origin_is_not_marked():
    request = asked(("clients.cors.mode", "dry_run"), Origin="http://localhost:3000")
    EDGE._check_origin(request)
    assert request[MARKS].rules == []


def test_a_page_reads_every_header_that_is_documented():
    shown = common_headers(asked_by_a_page())["Access-Control-Expose-Headers"].lower().split(", ")
    text = (Path(__file__).parents[2] / "docs" / "reference" / "http.md").read_text()
    named = re.findall(r"`((?:X-|x-ratelimit-|RateLimit|Retry-After|Request-Id)[\w-]*)", text)
    assert len(named) > 10
    assert {name.lower() for name in named} <= set(shown)


def asked_by_a_page():
    request = asked(Origin="http://localhost:3000")
    EDGE._check_origin(request)
    return request


@pytest.mark.parametrize(
    ("wished", "allowed"),
    [
        ("x-stainless-helper, idempotency-key", True),
        ("x-of-a-client-s-own,tracestate", True),
        ("x-one\tx-two", False),
        ("x" * 3000, False),
    ],
)
def test_a_page_may_send_the_headers_that_it_asks_for(wished, allowed):
    request = asked(Access_Control_Request_Headers=wished)
    told = _preflight(request).headers["Access-Control-Allow-Headers"]
    assert told.endswith(wished) == allowed
    assert "x-stainless-helper" in told


def test_a_key_is_not_logged():
    assert _path_of(make_mocked_request("DELETE", "/api/user/keys/sk-1")) == "/api/user/keys/*"
    assert _path_of(make_mocked_request("GET", "/api/tags")) == "/api/tags"


def test_headers_are_measured_together():
    limit = ("server.http.max_header_bytes", "1KiB")
    EDGE._check_headers(asked(limit, **{f"X_{n}": "x" * 100 for n in range(5)}))
    with pytest.raises(HeadersTooLarge, match="larger than 1024 bytes"):
        EDGE._check_headers(asked(limit, **{f"X_{n}": "x" * 100 for n in range(10)}))


class OutOfMemory:
    """An endpoint for which there is no memory."""

    render_error = staticmethod(in_ollama)

    async def __call__(self, request):
        raise MemoryError


class Guard:
    def __init__(self):
        self.emergencies = []

    def emergency(self, why):
        self.emergencies.append(why)


async def test_no_memory_for_a_request_is_a_503_and_an_emergency():
    guard = Guard()
    endpoint = OutOfMemory()
    edge = Edge(cast("Parts", SimpleNamespace(guard=guard)), lambda *_: endpoint, walls=False)
    answer = await edge._answer(asked(Host="localhost"))
    assert answer.status == 503
    assert answer.headers["X-Mlxd-Code"] == "insufficient_memory"
    assert answer.headers["Retry-After"] == "10"
    assert guard.emergencies == ["the daemon found no memory for a request"]


def test_an_answer_names_the_generation_it_was_given_under():
    assert common_headers(asked())["X-Mlxd-Policy"] == "1"
