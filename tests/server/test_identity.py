"""Who asks: addresses behind proxies, keys in headers, and what those without one may have."""

from types import SimpleNamespace
from typing import cast
from unittest.mock import Mock

import pytest
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from mlxd.core.caller import Caller
from mlxd.core.errors import TooManyGuesses, Unauthorized
from mlxd.core.story import untold
from mlxd.policy.keyring import Key, Keyring, digest_of
from mlxd.policy.load import Override, load
from mlxd.server import edge
from mlxd.server.app import routes
from mlxd.server.edge import Edge
from mlxd.server.identity import OPEN, Identity, address_of, client_at
from mlxd.server.parts import Parts

NOW = 1_800_000_000.0
GOOD = "mlxd_good"
RING = Keyring(
    (
        Key("a-1", "agents", digest_of(GOOD), 1.0),
        Key("a-2", "agents", digest_of("mlxd_over"), 1.0, expires=2.0),
    )
)
REQUIRED = ("clients.auth.required", "true")
PROXIES = "[127.0.0.1, 10.0.0.0/8, 'fd00::/8']"


class Counted:
    """Keys that say how often they were asked."""

    def __init__(self):
        self.asked = 0

    def find(self, secret):
        self.asked += 1
        return RING.find(secret, NOW)


@pytest.fixture
def keys():
    return Counted()


@pytest.fixture
def identity(keys):
    return Identity(keys)


def policies(*overrides):
    return load(None, [Override(key, text, "a test", yaml=True) for key, text in overrides])


def asked(path="/api/chat", *, peer="10.9.9.9", method="POST", **headers):
    pairs = [
        (name.replace("_", "-"), value)
        for name, given in headers.items()
        for value in (given if isinstance(given, list) else [given])
    ]
    transport = Mock()
    transport.get_extra_info.side_effect = lambda name: (peer, 1) if name == "peername" else None
    return make_mocked_request(method, path, headers=CIMultiDict(pairs), transport=transport)


def bearer(secret):
    return {"Authorization": f"Bearer {secret}"}


class TestKeys:
    @pytest.mark.parametrize(
        "headers",
        [
            {"Authorization": f"Bearer {GOOD}"},
            {"Authorization": f"bearer   {GOOD} "},
            {"x_api_key": GOOD},
            {"X_API_KEY": GOOD, "Authorization": "Basic Zm9vOmJhcg=="},
            {"X_API_KEY": GOOD, "Authorization": "Bearer ollama"},
            {"x_api_key": "dummy", "Authorization": f"Bearer {GOOD}"},
        ],
    )
    def test_the_first_known_one_says_who_asks(self, identity, headers):
        for overrides in ([], [REQUIRED]):
            caller = identity.identify(asked(**headers), policies(*overrides), 1.0)
            assert (caller.address, caller.key, caller.tenant) == ("10.9.9.9", "a-1", "agents")
            assert caller.name == "agents"

    @pytest.mark.parametrize(
        ("headers", "given"),
        [
            ({}, False),
            ({"Authorization": "Basic Zm9vOmJhcg=="}, False),
            ({"Authorization": "Bearer"}, False),
            ({"Authorization": "Bearer "}, False),
            ({"Authorization": GOOD}, False),
            ({"x_api_key": ""}, False),
            ({"x_api_key": "mlxd_bad"}, True),
            ({"Authorization": "Bearer mlxd_over"}, True),
            ({"Authorization": f"Bearer {'x' * 9000}"}, True),
        ],
    )
    def test_any_other_is_as_good_as_none_where_none_is_required(self, identity, headers, given):
        caller = identity.identify(asked(**headers), policies(), 1.0)
        assert (caller.key, caller.tenant, caller.name) == ("", "", "10.9.9.9")
        with pytest.raises(Unauthorized) as refused:
            identity.identify(asked(**headers), policies(REQUIRED), 1.0)
        assert ("not known" in refused.value.message) is given
        assert ("Authorization: Bearer KEY` or `x-api-key" in refused.value.message) is not given
        assert refused.value.policy is not None
        assert refused.value.policy.key == "clients.auth.required"

    def test_only_the_headers_that_policy_names_are_read(self, identity):
        named = ("clients.auth.headers", "[X-Token]")
        for headers in (bearer(GOOD), {"x_api_key": GOOD}):
            with pytest.raises(Unauthorized, match="send it as `X-Token: KEY`"):
                identity.identify(asked(**headers), policies(REQUIRED, named), 1.0)
        assert identity.identify(asked(X_Token=GOOD), policies(REQUIRED, named), 1.0).key == "a-1"

    @pytest.mark.parametrize("path", sorted(OPEN))
    def test_whoever_looks_whether_it_lives_needs_none(self, identity, path):
        for headers in (bearer(""), bearer("mlxd_bad")):
            assert not identity.identify(asked(path, **headers), policies(REQUIRED), 1.0).key
        assert identity.identify(asked(path, **bearer(GOOD)), policies(REQUIRED), 1.0).key == "a-1"

    @pytest.mark.parametrize(
        "path", ["/", "/nowhere", "/livez/", "//livez", "/metrics", "/health/x"]
    )
    def test_everybody_else_does(self, identity, path):
        with pytest.raises(Unauthorized):
            identity.identify(asked(path), policies(REQUIRED), 1.0)

    def test_what_is_open_is_served(self):
        assert set(routes(cast("Parts", None))._exact) >= OPEN


class TestGuesses:
    LIMITS = (REQUIRED, ("clients.auth.guesses", "{max: 3, window: 60s, penalty: 30s}"))

    def guess(self, identity, times, now=1.0, **changes):
        for _ in range(times):
            with pytest.raises(Unauthorized):
                identity.identify(
                    asked(**bearer("mlxd_bad"), **changes), policies(*self.LIMITS), now
                )

    def test_an_address_that_guesses_is_refused_whatever_key_it_has(self, identity, keys):
        self.guess(identity, 3)
        before = keys.asked
        for headers in (bearer(GOOD), bearer("mlxd_bad"), bearer("")):
            with pytest.raises(TooManyGuesses) as refused:
                identity.identify(asked(**headers), policies(*self.LIMITS), 11.0)
            assert refused.value.retry_after == 20.0
        assert keys.asked == before, "no key is looked up meanwhile"
        other = asked(peer="10.9.9.8", **bearer(GOOD))
        assert identity.identify(other, policies(*self.LIMITS), 11.0).key == "a-1"
        again = asked(**bearer(GOOD))
        assert identity.identify(again, policies(*self.LIMITS), 31.1).key == "a-1"

    def test_it_is_told_whether_the_daemon_lives_all_the_same(self, identity, keys):
        self.guess(identity, 3)
        before = keys.asked
        request = asked("/livez", **bearer(GOOD))
        assert not identity.identify(request, policies(*self.LIMITS), 2.0).key
        assert keys.asked == before

    def test_no_key_is_no_guess(self, identity):
        for _ in range(9):
            with pytest.raises(Unauthorized):
                identity.identify(asked(), policies(*self.LIMITS), 1.0)

    def test_where_none_is_required_nothing_is_counted(self, identity):
        for _ in range(9):
            identity.identify(asked(**bearer("ollama")), policies(*self.LIMITS[1:]), 1.0)
        assert identity.identify(asked(**bearer(GOOD)), policies(*self.LIMITS), 1.0).key

    def test_they_count_on_the_address_behind_a_trusted_proxy(self, identity):
        proxied = policies(*self.LIMITS, ("clients.trusted_proxies", PROXIES))
        bad = asked(X_Forwarded_For="203.0.113.5", **bearer("mlxd_bad"))
        good = asked(X_Forwarded_For="203.0.113.5", **bearer(GOOD))
        other = asked(X_Forwarded_For="203.0.113.6", **bearer(GOOD))
        for _ in range(3):
            with pytest.raises(Unauthorized):
                identity.identify(bad, proxied, 1.0)
        with pytest.raises(TooManyGuesses):
            identity.identify(good, proxied, 1.0)
        assert identity.identify(other, proxied, 1.0).address == "203.0.113.6"


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
        request = asked(peer=peer, X_Forwarded_For=told)
        assert address_of(request, policies(("clients.trusted_proxies", PROXIES))) == address

    def test_nobody_is_believed_where_no_proxy_is_trusted(self):
        request = asked(peer="127.0.0.1", X_Forwarded_For="203.0.113.5")
        assert address_of(request, policies()) == "127.0.0.1"

    def test_a_long_tale_is_not_read_to_its_end(self):
        request = asked(peer="10.0.0.1", X_Forwarded_For="203.0.113.5" + ", 10.0.0.2" * 5000)
        assert address_of(request, policies(("clients.trusted_proxies", PROXIES))) == "10.0.0.2"

    @pytest.mark.parametrize(
        ("remote", "client"),
        [("", "local"), ("1.2.3.4", "1.2.3.4"), ("fe80::1%eth0", "fe80::/64"), ("x", "x")],
    )
    def test_a_peer_is_a_client_by_its_address(self, remote, client):
        assert client_at(remote) == client


def test_counted_headers_are_told_as_digests(identity):
    rule = ("limits.rate_limit", '[{key: "header:X-Team"}]')
    caller = identity.identify(asked(X_Team="SECRET", X_Other="b"), policies(rule), 1.0)
    assert set(caller.headers) == {"x-team"}
    assert "SECRET" not in repr(caller)
    again = identity.identify(asked(X_Team="SECRET"), policies(rule), 1.0)
    other = identity.identify(asked(X_Team="another"), policies(rule), 1.0)
    assert again.headers == caller.headers
    assert other.headers != caller.headers
    assert identity.identify(asked(), policies(rule), 1.0).headers == {}


class TestEdge:
    """401 and 429 as answers, and as events."""

    @pytest.fixture
    def rejected(self):
        return []

    @pytest.fixture
    def answer(self, identity, rejected):
        parts = SimpleNamespace(
            clock=SimpleNamespace(monotonic=lambda: 1.0),
            rejections=SimpleNamespace(add=lambda error, *_, **data: rejected.append(data)),
            metrics=SimpleNamespace(refused=lambda code: None),
        )
        wall = Edge(cast("Parts", parts), routes(cast("Parts", None)), callers=identity)

        async def ask(path, **headers):
            request = asked(path, Host="localhost", **headers)
            request[edge.ID] = "1"
            request[edge.POLICIES] = policies(REQUIRED)
            request[edge.MARKS] = edge.Marks(lambda _: None)
            request[edge.CALLER] = Caller("10.9.9.9")
            request[edge.STORY] = untold()
            return await wall._answer(request)

        return ask

    @pytest.mark.parametrize(
        ("path", "said"),
        [
            ("/api/chat", '"error"'),
            ("/v1/chat/completions", '"code":"invalid_api_key"'),
            ("/v1/messages", '"type":"authentication_error"'),
            ("/nowhere", '"error"'),
        ],
    )
    async def test_each_api_says_it_in_its_own_shape(self, answer, rejected, path, said):
        response = await answer(path)
        assert response.status == 401
        assert response.headers["WWW-Authenticate"] == "Bearer"
        assert response.headers["X-Mlxd-Policy-Key"] == "clients.auth.required"
        assert said in response.text.replace(" ", "")
        assert rejected == [{"model": "", "client": "10.9.9.9"}]

    async def test_a_guesser_is_told_when_to_come_again(self, answer):
        for _ in range(10):
            assert (await answer("/v1/models", **bearer("mlxd_SECRET"))).status == 401
        response = await answer("/v1/models", **bearer(GOOD))
        assert response.status == 429
        assert response.headers["Retry-After"] == "60"
        assert "SECRET" not in response.text

    async def test_a_browser_may_ask_whether_it_may(self, identity):
        parts = SimpleNamespace(clock=SimpleNamespace(monotonic=lambda: 1.0))
        wall = Edge(cast("Parts", parts), routes(cast("Parts", None)), callers=identity)
        request = asked("/api/chat", method="OPTIONS", Host="localhost")
        request[edge.POLICIES] = policies(REQUIRED)
        request[edge.MARKS] = edge.Marks(lambda _: None)
        assert (await wall._answer(request)).status == 204
