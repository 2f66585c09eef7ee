"""Which address a request comes from: its peer's, or what proxies that are trusted say."""

from unittest.mock import Mock

import pytest
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from mlxd.policy.load import Override, load
from mlxd.server.forwarded import address_of, client_at, is_proxy

PROXIES = "[127.0.0.1, 10.0.0.0/8, 'fd00::/8']"


def policies(*overrides):
    return load(None, [Override(key, text, "a test", yaml=True) for key, text in overrides])


def asked(peer, told):
    transport = Mock()
    transport.get_extra_info.side_effect = lambda name: (peer, 1) if name == "peername" else None
    headers = CIMultiDict(("X-Forwarded-For", text) for text in told)
    return make_mocked_request("POST", "/api/chat", headers=headers, transport=transport)


class TestAddresses:
    @pytest.mark.parametrize(
        ("peer", "told", "address"),
        [
            ("10.0.0.1", [], "10.0.0.1"),
            ("10.0.0.1", ["203.0.113.5"], "203.0.113.5"),
            ("10.0.0.1", ["1.1.1.1, 203.0.113.5"], "203.0.113.5"),
            ("10.0.0.1", ["1.1.1.1", "203.0.113.5"], "203.0.113.5"),
            ("10.0.0.1", ["1.1.1.1, 203.0.113.5, 10.0.0.7"], "203.0.113.5"),
            ("10.0.0.1", ["junk, 203.0.113.5,10.0.0.7"], "203.0.113.5"),
            ("10.0.0.1", ["10.0.0.9, 10.0.0.7"], "10.0.0.9"),
            ("10.0.0.1", ["203.0.113.5:4711"], "203.0.113.5"),
            ("10.0.0.1", ["[2001:db8::5]:4711"], "2001:db8::/64"),
            ("10.0.0.1", ["2001:db8::5"], "2001:db8::/64"),
            ("10.0.0.1", ["[2001:db8::5%eth0]"], "2001:db8::/64"),
            ("10.0.0.1", ["::ffff:203.0.113.5"], "203.0.113.5"),
            ("::ffff:10.0.0.1", ["203.0.113.5"], "203.0.113.5"),
            ("fd00::1", ["203.0.113.5"], "203.0.113.5"),
            ("127.0.0.1", ["203.0.113.5"], "203.0.113.5"),
            ("10.0.0.1", ["unknown"], "10.0.0.1"),
            ("10.0.0.1", ["unknown, 10.0.0.7"], "10.0.0.1"),
            ("10.0.0.1", ["203.0.113.5, unknown"], "10.0.0.1"),
            ("10.0.0.1", ["203.0.113.5, "], "10.0.0.1"),
            ("10.0.0.1", ["", ""], "10.0.0.1"),
            ("10.0.0.1", ["203.0.113.5:x"], "10.0.0.1"),
            ("10.0.0.1", ["203.0.113.5 OR 1=1"], "10.0.0.1"),
            ("192.0.2.1", ["203.0.113.5"], "192.0.2.1"),
            ("2001:db8:1::1", ["203.0.113.5"], "2001:db8:1::/64"),
            ("", ["203.0.113.5"], "local"),
        ],
    )
    def test_it_is_the_rightmost_that_is_no_trusted_proxy(self, peer, told, address):
        request = asked(peer, told)
        assert address_of(request, policies(("clients.trusted_proxies", PROXIES))) == address

    def test_nobody_is_believed_where_no_proxy_is_trusted(self):
        request = asked("127.0.0.1", ["203.0.113.5"])
        assert address_of(request, policies()) == "127.0.0.1"

    def test_a_long_tale_is_not_read_to_its_end(self):
        request = asked("10.0.0.1", ["203.0.113.5" + ", 10.0.0.2" * 5000])
        assert address_of(request, policies(("clients.trusted_proxies", PROXIES))) == "10.0.0.2"

    @pytest.mark.parametrize(
        ("remote", "client"),
        [("", "local"), ("1.2.3.4", "1.2.3.4"), ("fe80::1%eth0", "fe80::/64"), ("x", "x")],
    )
    def test_a_peer_is_a_client_by_its_address(self, remote, client):
        assert client_at(remote) == client


@pytest.mark.parametrize(
    ("peer", "proxy"),
    [("10.1.2.3", True), ("::ffff:10.1.2.3", True), ("192.0.2.1", False), ("", False)],
)
def test_a_proxy_is_one_that_is_trusted(peer, proxy):
    assert is_proxy(peer, policies(("clients.trusted_proxies", PROXIES))) is proxy
    assert not is_proxy(peer, policies())
