"""Who gets past the walls: which hosts, and pages of which origins."""

import pytest
from aiohttp.test_utils import make_mocked_request

from mlxd.policy.load import load
from mlxd.policy.origins import origin_allowed
from mlxd.server.walls import host_allowed, preflight

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
    headers = {"Access-Control-Request-Headers": wished}
    told = preflight(make_mocked_request("OPTIONS", "/", headers=headers)).headers[
        "Access-Control-Allow-Headers"
    ]
    assert told.endswith(wished) == allowed
    assert "x-stainless-helper" in told
