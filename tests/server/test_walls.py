"""Who gets past the walls: which hosts, and pages of which origins."""

import pytest
from aiohttp.test_utils import make_mocked_request

from mlxd.policy.load import load
from mlxd.policy.origins import origin_allowed
from mlxd.server.walls import host_allowed, host_of, preflight

HOSTS = load().clients.hosts.allow
ORIGINS = load().clients.cors.allow_origins


@pytest.mark.parametrize(
    "host",
    ["", "localhost", "a.localhost", "mac.local", "host.docker.internal", "127.0.0.1", "[::1]",
     "127.9.9.9", "0.0.0.0", "192.168.1.7", "10.0.0.3", "[fe80::1]", "[fe80::1%eth0]",
     "[::ffff:127.0.0.1]", "[::ffff:192.168.1.7]"],
)  # fmt: skip
def test_this_machine_and_its_containers_may_ask(host):
    assert host_allowed(host, HOSTS)


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "8.8.8.8", "127.0.0.1.evil.example", "[::g]",
     "[::ffff:8.8.8.8]", "[2001:4860:4860::8888]", "::1", "127.1", "0x7f000001", "2130706433",
     "0177.0.0.1", "127.0.0.1%eth0", "localhost..", "evil-localhost", "internal",
     "localhost@evil.example"],
)  # fmt: skip
def test_a_name_that_a_stranger_can_point_here_may_not(host):
    assert not host_allowed(host, HOSTS)


def test_a_loopback_address_of_ipv4_in_ipv6_is_one():
    assert host_allowed("[::ffff:127.0.0.1]", ["loopback-addresses"])
    assert not host_allowed("[::ffff:10.0.0.1]", ["loopback-addresses"])


@pytest.mark.parametrize(
    ("header", "host"),
    [
        ("LocalHost:11435", "localhost"),
        ("localhost.", "localhost"),
        ("localhost.:80", "localhost"),
        ("[::1]:11435", "[::1]"),
        (" 127.0.0.1 ", "127.0.0.1"),
        ("", ""),
    ],
)
def test_a_host_is_told_from_its_port(header, host):
    assert host_of(header) == host


@pytest.mark.parametrize(
    "header",
    ["localhost:80@evil.example", "localhost@evil.example", "localhost:evil.example",
     "localhost:-1", "localhost/evil.example", "localhost evil.example", "localhost, evil.example",
     "[::1]evil.example", "[::1", "::1", ":80", ".", "..", "127.0.0.1:80:80", "localhost\x00",
     "evil.example/.local", "evil.example@x.localhost"],
)  # fmt: skip
def test_what_is_no_host_is_allowed_to_nobody(header):
    assert not host_allowed(host_of(header), HOSTS)


@pytest.mark.parametrize(
    "origin",
    ["http://localhost:3000", "http://localhost", "https://127.0.0.1:8443", "app://obsidian.md",
     "vscode-webview://x", "chrome-extension://abc", "moz-extension://abc", "HTTP://LOCALHOST:80"],
)  # fmt: skip
def test_local_pages_and_apps_may_ask(origin):
    assert origin_allowed(origin, ORIGINS)


@pytest.mark.parametrize(
    "origin",
    ["null", "", "https://evil.example", "http://localhost.evil.example", "http://localhostx",
     "http://localhost:80.evil.example", "http://localhost:80@evil.example",
     "http://localhost@evil.example", "http://localhost:evil.example", "http://evil.example:80",
     "http://evil.example/http://localhost", "http://127.0.0.1.evil.example", "ftp://localhost",
     "http://localhost:", "http://localhost:123456", "chrome-extension:x", "data://x",
     "javascript://localhost", "http://localhost:80\nhttp://evil.example"],
)  # fmt: skip
def test_foreign_pages_may_not(origin):
    assert not origin_allowed(origin, ORIGINS)


@pytest.mark.parametrize("pattern", ["http://[::1]:*", "http://[::1]:3000", "http://[::1*"])
def test_brackets_in_a_pattern_are_those_of_an_ipv6_address(pattern):
    assert origin_allowed("http://[::1]:3000", [pattern])
    assert not origin_allowed("http://1:3000", [pattern])


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
