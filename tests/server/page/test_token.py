"""The page's token is for a browser on this machine that shows this daemon's own page."""

import os
import socket
import threading

import pytest
from aiohttp import HttpVersion10, HttpVersion11
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
        ends = {"peername": (self._peer, 50_000), "sockname": (self._peer, 11_435)}
        return ends.get(name, default)


def asked(*overrides, peer="127.0.0.1", host=HOST, caller=None, version=HttpVersion11, **headers):
    given = CIMultiDict((name.replace("_", "-"), value) for name, value in headers.items())
    if host:
        given["Host"] = host
    request = make_mocked_request(
        "POST", "/admin/policy/reload", headers=given, version=version, transport=Transport(peer)
    )
    request[edge.POLICIES] = load(
        None, [Override(key, text, "a test", yaml=True) for key, text in overrides]
    )
    request[edge.CALLER] = caller or Caller(peer)
    return request


@pytest.fixture(autouse=True)
def of_nobody_else(monkeypatch):
    """Peers here are made up: the system knows none of them."""
    monkeypatch.setattr(neighbour, "uids_of", lambda theirs, ours: None)


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
    {"X_Forwarded_Proto": "http"},
    {"x_forwarded_host": "localhost:11435"},
    {"Forwarded": "for=127.0.0.1"},
    {"Via": "1.1 proxy"},
    {"CF_Connecting_IP": "10.0.0.7"},
    {"True_Client_IP": "10.0.0.7"},
    {"X_Client_IP": "10.0.0.7"},
    {"X_Real_IP": "10.0.0.7"},
    {"version": HttpVersion10},
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
async def test_a_browser_here_is_given_it_and_may_use_it(given):
    page = PageToken()
    shown = await page.give(asked(**given))
    page.check(asked(**given, **{HEADER: shown}))


@pytest.mark.parametrize("given", FOREIGN)
async def test_nobody_else_is_given_it_or_gains_by_it(given):
    page = PageToken()
    shown = await page.give(asked())
    with pytest.raises(Forbidden):
        await page.give(asked(**given))
    with pytest.raises(Forbidden):
        page.check(asked(**given, **{HEADER: shown}))


@pytest.mark.parametrize(("override", "key"), CLOSED)
async def test_policy_ends_it_at_once(override, key):
    page = PageToken()
    shown = await page.give(asked())
    with pytest.raises(Forbidden) as refused:
        await page.give(asked(override))
    assert refused.value.policy is not None
    assert refused.value.policy.key == key
    with pytest.raises(Forbidden) as refused:
        page.check(asked(override, **{HEADER: shown}))
    assert refused.value.policy is not None
    assert refused.value.policy.key == key


async def test_where_others_reach_the_daemon_without_a_key_there_is_none():
    wide = (("server.listen.host", "0.0.0.0"), ("clients.auth.required", "false"))
    with pytest.raises(Forbidden) as refused:
        await PageToken().give(asked(*wide))
    assert refused.value.policy is not None
    assert refused.value.policy.key == "server.listen.host"


@pytest.mark.parametrize("shown", ["", "guess", "x" * 43, "ä"])
def test_a_wrong_one_is_refused(shown):
    with pytest.raises(Forbidden, match="another run"):
        PageToken().check(asked(**{HEADER: shown}))


async def test_each_daemon_has_its_own():
    shown = await PageToken().give(asked())
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


LINUX = pytest.mark.skipif(not neighbour._LISTS[0].exists(), reason="only Linux lists them")
HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n"
FOUR = ("0100007F:C350", "0100007F:2CAB")
MAPPED = (f"{'0' * 16}FFFF0000{FOUR[0]}", f"{'0' * 16}FFFF0000{FOUR[1]}")
SIX = (f"{'0' * 24}01000000:C350", f"{'0' * 24}01000000:2CAB")


def row(local, remote, state="01", uid=4711):
    return f"   7: {local} {remote} {state} 00000000:00000000 00:00000000 00000000  {uid}  0 1 1\n"


def reusable(port=0):
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    return sock


class TestNeighbours:
    @pytest.fixture
    def lists(self, monkeypatch, tmp_path):
        """What the system says."""
        monkeypatch.undo()
        monkeypatch.setattr(neighbour, "_LISTS", (tmp_path / "tcp", tmp_path / "tcp6"))
        monkeypatch.setattr("os.geteuid", lambda: 4711)

        def write(*rows, six=()):
            (tmp_path / "tcp").write_text(HEAD + "".join(rows))
            (tmp_path / "tcp6").write_text(HEAD + "".join(six))

        return write

    @LINUX
    @pytest.mark.parametrize("there", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
    def test_the_system_tells_whose_a_connection_is(self, there, monkeypatch):
        monkeypatch.undo()
        family = socket.AF_INET6 if ":" in there else socket.AF_INET
        with socket.socket(family) as server, socket.socket(family) as client:
            server.bind((there, 0))
            server.listen()
            client.connect(server.getsockname())
            theirs, ours = client.getsockname()[:2], server.getsockname()[:2]
            assert neighbour.uids_of(theirs, ours) == {os.geteuid()}
            assert neighbour.uids_of(theirs, (ours[0], 1)) == set()
            assert neighbour.uids_of((ours[0], 1), ours) == set()

    @LINUX
    def test_what_its_port_was_used_for_before_is_not_taken_for_it(self, monkeypatch):
        monkeypatch.undo()
        with socket.create_server(("127.0.0.1", 0)) as own, reusable() as first:
            port = first.getsockname()[1]
            first.connect(own.getsockname())
            accepted, _ = own.accept()
            first.close()
            accepted.close()
            before = (("127.0.0.1", port), own.getsockname())
        with socket.create_server(("127.0.0.1", 0)) as daemon, reusable(port) as again:
            ours = daemon.getsockname()
            gone = neighbour._row(*(neighbour._printed(end)[0] for end in before))
            assert gone + b"06" in neighbour._LISTS[0].read_bytes()
            assert neighbour.uids_of(("127.0.0.1", port), ours) == set()
            again.connect(ours)
            assert neighbour.uids_of(("127.0.0.1", port), ours) == {os.geteuid()}
            assert neighbour.uids_of(*before) == set()

    @pytest.mark.parametrize(
        ("rows", "six", "given"),
        [
            ([row(*FOUR)], [], True),
            ([], [row(*MAPPED)], True),
            ([row(*FOUR)], [row(*SIX, uid=0)], True),
            ([row(*FOUR, uid=4712)], [], False),
            ([row(*FOUR, uid=0)], [], False),
            ([row(*FOUR), row(*FOUR, uid=4712)], [], False),
            ([row(*FOUR, state="06")], [], False),
            ([row(*FOUR, state="0A")], [], False),
            ([row(*FOUR[::-1])], [], False),
            ([row(FOUR[0], "0100007F:2CAC")], [], False),
            ([row("0200007F:C350", FOUR[1])], [], False),
            ([], [], False),
        ],
    )
    async def test_its_own_users_browser_alone_is_given_it(self, rows, six, given, lists):
        lists(*rows, six=six)
        if given:
            assert await PageToken().give(asked())
        else:
            with pytest.raises(Forbidden, match="another user"):
                await PageToken().give(asked())

    async def test_one_of_ipv6_is_found(self, lists):
        lists(six=[row(*SIX)])
        assert await PageToken().give(asked(peer="::1", host="[::1]:11435"))

    async def test_where_the_system_lists_none_it_is_given(self, lists):
        assert await PageToken().give(asked())

    async def test_a_daemon_of_roots_gives_it_to_root(self, lists, monkeypatch):
        monkeypatch.setattr("os.geteuid", lambda: 0)
        lists(row(*FOUR, uid=0))
        assert await PageToken().give(asked())

    async def test_long_lists_are_read_aside_from_the_loop(self, monkeypatch):
        threads = []
        monkeypatch.setattr(
            neighbour, "uids_of", lambda *ends: threads.append(threading.get_ident())
        )
        await PageToken().give(asked())
        assert threads[0] != threading.get_ident()


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

    @pytest.mark.parametrize(
        ("key", "tenant", "line"),
        [
            ("k-2", "agents", "clients.tenants.agents.admin: false"),
            ("k-3", "others", "clients.tenants: ..."),
            ("", "", "clients.tenants: ..."),
        ],
    )
    def test_whoever_is_refused_is_told_nothing_of_other_tenants(self, key, tenant, line):
        caller = Caller("10.0.0.7", key, tenant)
        with pytest.raises(Forbidden) as refused:
            Administrators(PageToken()).check(asked(self.ADMIN, caller=caller))
        assert str(refused.value.policy).startswith(f"{line} (")
        with pytest.raises(Forbidden) as refused:
            PageToken().check(asked(self.ADMIN))
        assert str(refused.value.policy).startswith("clients.tenants: ... (")

    def test_nobody_without_a_key_and_a_token_does(self):
        assert not self.may()
        assert not self.may(self.ADMIN)
        assert not self.may(**{HEADER: "guess"})
