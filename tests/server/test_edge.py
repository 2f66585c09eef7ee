from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request

from mlxd.core.errors import Forbidden, HeadersTooLarge
from mlxd.policy.load import Override, load
from mlxd.server.edge import Edge, host_allowed, origin_allowed

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


def edge_of(*overrides):
    policies = load(None, [Override(key, text, "a test") for key, text in overrides])
    parts: Any = SimpleNamespace(policies=SimpleNamespace(current=policies))
    route: Any = None
    return Edge(parts, route)


@pytest.mark.parametrize("host", ["localhost", "foo.localhost", "::ffff:127.0.0.1", "127.8.8.8"])
def test_the_host_is_checked_wherever_policy_says_loopback(host):
    request = make_mocked_request("GET", "/", headers={"Host": "evil.example"})
    with pytest.raises(Forbidden):
        edge_of(("server.listen.host", host))._check_host(request)


def test_headers_are_measured_together():
    edge = edge_of(("server.http.max_header_bytes", "1KiB"))
    few = {f"X-{n}": "x" * 100 for n in range(5)}
    edge._check_headers(make_mocked_request("GET", "/", headers=few))
    many = {f"X-{n}": "x" * 100 for n in range(10)}
    with pytest.raises(HeadersTooLarge, match="larger than 1024 bytes"):
        edge._check_headers(make_mocked_request("GET", "/", headers=many))
