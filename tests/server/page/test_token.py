"""The page's token is for a browser on this machine that shows this daemon's own page."""

import os
import socket

import pytest
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from mlxd.core.caller import Caller
from mlxd.core.errors import Forbidden
from mlxd.policy.load import Override, load
from mlxd.server import edge
from mlxd.server.guarded import Administrators
from mlxd.server.page import neighbour
from mlxd.server.page.token import HEADER, PageToken

HOST = "localhost:11435"


class Transport:
    def __init__(self, peer):
        self._peer = peer

    def get_extra_info(self, name, default=None):
        return (self._peer, 50_000) if name == "peername" else default


def asked(*overrides, peer="127.0.0.1", host=HOST, caller=None, **headers):
    given = CIMultiDict((name.replace("_", "-"), value) for name, value in headers.items())
    if host:
        given["Host"] = host
    request = make_mocked_request(
        "POST", "/admin/policy/reload", headers=given, transport=Transport(peer)
    )
    request[edge.POLICIES] = load(
        None, [Override(key, text, "a test", yaml=True) for key, text in overrides]
    )
    request[edge.CALLER] = caller or Caller(peer)
    return request


@pytest.fixture(autouse=True)
def of_nobody_else(monkeypatch):
    """Peers here are made up: the system knows none of them."""
    monkeypatch.setattr(neighbour, "uid_of", lambda end: None)


OWN = [
    {},
    {"host": "127.0.0.1:11435"},
    {"host": "[::1]:11435", "peer": "::1"},
    {"peer": "::ffff:127.0.0.1"},
    {"Sec_Fetch_Site": "same-origin"},
    {"Origin": f"http://{HOST}", "Sec_Fetch_Site": "same-origin"},
]
FOREIGN = [
    {"peer": "10.0.0.7"},
    {"peer": ""},
    {"X_Forwarded_For": "127.0.0.1"},
    {"Via": "1.1 proxy"},
    {"host": ""},
    {"host": "evil.example"},
    {"host": "evil.example:11435", "Origin": "http://evil.example:11435"},
    {"host": "192.168.1.10:11435"},
    {"host": "localhost.evil.example:11435"},
    {"Origin": "http://localhost:3000"},
    {"Origin": "https://localhost:11435"},
    {"Origin": "null"},
    {"Origin": "vscode-webview://x"},
    {"Sec_Fetch_Site": "same-site"},
    {"Sec_Fetch_Site": "cross-site"},
    {"Sec_Fetch_Site": "none"},
]
CLOSED = [
    (("server.page", "false"), "server.page"),
    (("clients.tenants", "{ops: {admin: true}}"), "clients.tenants"),
    (("clients.auth.required", "true"), "clients.auth.required"),
    (("server.listen.host", "0.0.0.0"), "clients.auth.required"),
]


@pytest.mark.parametrize("given", OWN)
def test_a_browser_here_is_given_it_and_may_use_it(given):
    page = PageToken()
    shown = page.give(asked(**given))
    page.check(asked(**given, **{HEADER: shown}))


@pytest.mark.parametrize("given", FOREIGN)
def test_nobody_else_is_given_it_or_gains_by_it(given):
    page = PageToken()
    shown = page.give(asked())
    with pytest.raises(Forbidden):
        page.give(asked(**given))
    with pytest.raises(Forbidden):
        page.check(asked(**given, **{HEADER: shown}))


@pytest.mark.parametrize(("override", "key"), CLOSED)
def test_policy_ends_it_at_once(override, key):
    page = PageToken()
    shown = page.give(asked())
    for ask in (page.give, page.check):
        with pytest.raises(Forbidden) as refused:
            ask(asked(override, **{HEADER: shown}))
        assert refused.value.policy is not None
        assert refused.value.policy.key == key


def test_where_others_reach_the_daemon_without_a_key_there_is_none():
    wide = (("server.listen.host", "0.0.0.0"), ("clients.auth.required", "false"))
    with pytest.raises(Forbidden) as refused:
        PageToken().give(asked(*wide))
    assert refused.value.policy is not None
    assert refused.value.policy.key == "server.listen.host"


@pytest.mark.parametrize("shown", ["", "guess", "x" * 43, "ä"])
def test_a_wrong_one_is_refused(shown):
    with pytest.raises(Forbidden, match="another run"):
        PageToken().check(asked(**{HEADER: shown}))


def test_each_daemon_has_its_own():
    shown = PageToken().give(asked())
    with pytest.raises(Forbidden, match="another run"):
        PageToken().check(asked(**{HEADER: shown}))


def test_it_is_compared_in_constant_time(monkeypatch):
    compared = []

    def compare(*two):
        compared.append(two)
        return True

    monkeypatch.setattr("hmac.compare_digest", compare)
    PageToken().check(asked(**{HEADER: "guess"}))
    assert len(compared) == 1


class TestNeighbours:
    @pytest.fixture
    def connection(self):
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname()) as client,
        ):
            yield client

    @pytest.mark.skipif(not neighbour._LISTS[0].exists(), reason="only Linux lists them")
    def test_the_system_tells_whose_a_connection_is(self, connection, monkeypatch):
        monkeypatch.undo()
        assert neighbour.uid_of(connection.getsockname()) == os.geteuid()
        assert neighbour.uid_of(("127.0.0.1", 1)) is None

    @pytest.mark.parametrize(
        ("uid", "given"), [(None, True), (0, True), (os.geteuid(), True), (4711, False)]
    )
    def test_another_users_browser_is_given_none(self, uid, given, monkeypatch):
        monkeypatch.setattr(neighbour, "uid_of", lambda end: uid)
        if given:
            assert PageToken().give(asked())
        else:
            with pytest.raises(Forbidden, match="another user"):
                PageToken().give(asked())

    @pytest.mark.parametrize(
        ("digits", "address"),
        [
            ("0100007F", "127.0.0.1"),
            ("00000000000000000000000001000000", "::1"),
            ("0000000000000000FFFF00000100007F", "127.0.0.1"),
        ],
    )
    def test_addresses_are_read_as_the_kernel_writes_them(self, digits, address):
        assert neighbour._address(digits) == address


class TestAdministrators:
    ADMIN = ("clients.tenants", "{Ops: {admin: true}, agents: {weight: 2}}")

    def may(self, *overrides, caller=None, **headers):
        try:
            Administrators(PageToken()).check(asked(*overrides, caller=caller, **headers))
        except Forbidden:
            return False
        return True

    def test_a_key_of_such_a_tenant_opens_it_from_anywhere(self):
        ops = Caller("10.0.0.7", "k-1", "ops")
        assert self.may(self.ADMIN, caller=ops, peer="10.0.0.7", host="studio.example")
        assert not self.may(caller=ops)
        assert not self.may(self.ADMIN, caller=Caller("10.0.0.7", "k-2", "agents"))
        assert not self.may(self.ADMIN, caller=Caller("10.0.0.7", "k-3", "others"))

    def test_nobody_without_a_key_and_a_token_does(self):
        assert not self.may()
        assert not self.may(self.ADMIN)
        assert not self.may(**{HEADER: "guess"})
