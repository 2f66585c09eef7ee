"""Who asks: keys in headers, and what those without one may have."""

from types import SimpleNamespace
from typing import cast
from unittest.mock import Mock

import pytest
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from mlxd.core.caller import Caller
from mlxd.core.clock import ManualClock
from mlxd.core.errors import TooManyGuesses, Unauthorized
from mlxd.core.story import untold
from mlxd.policy.keyring import Key, Keyring, digest_of
from mlxd.policy.load import Override, load
from mlxd.policy.store import PolicyStore
from mlxd.server import edge
from mlxd.server.app import routes
from mlxd.server.connection import Connection
from mlxd.server.connections import GuardedServer
from mlxd.server.edge import Edge
from mlxd.server.identity import OPEN, Identity, keys_required_of
from mlxd.server.parts import Parts

NOW = 1_800_000_000.0
GOOD = "mlxd_good"
RING = Keyring(
    (
        Key("a-1", "agents", digest_of(GOOD), 1.0),
        Key("a-2", "agents", digest_of("mlxd_over"), 1.0, expires=2.0),
        Key("a-3", "agents", digest_of("mlxd_gone"), 1.0, revoked=2.0),
    )
)
REQUIRED = ("clients.auth.required", "true")
PROXIES = "[127.0.0.1, 10.0.0.0/8, 'fd00::/8']"


class Held:
    """Those of the ring, as they are at one time."""

    def __init__(self):
        self.certain = True

    def find(self, secret):
        return RING.find(secret, NOW)

    def over(self, secret):
        key = RING.known(secret)
        return "" if key is None or key.valid(NOW) else key.state(NOW)


@pytest.fixture
def keys():
    return Held()


@pytest.fixture
def identity(keys):
    return Identity(keys)


def policies(*overrides):
    return load(None, [Override(key, text, "a test", yaml=True) for key, text in overrides])


def asked(path="/api/chat", *, peer="10.9.9.9", method="POST", protocol=None, **headers):
    pairs = [
        (name.replace("_", "-"), value)
        for name, given in headers.items()
        for value in (given if isinstance(given, list) else [given])
    ]
    transport = Mock()
    transport.get_extra_info.side_effect = lambda name: (peer, 1) if name == "peername" else None
    given = {} if protocol is None else {"protocol": protocol}
    return make_mocked_request(
        method, path, headers=CIMultiDict(pairs), transport=transport, **given
    )


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


class TestDoors:
    """While the daemon moves from one address to another, it serves by both."""

    @pytest.mark.parametrize(
        ("sockname", "outside"),
        [
            (("127.0.0.1", 1), False),
            (("::1", 1, 0, 0), False),
            (("::ffff:127.0.0.1", 1, 0, 0), False),
            (("192.0.2.7", 1), True),
            (("fe80::1%eth0", 1, 0, 2), True),
            (None, True),
        ],
    )
    async def test_a_connection_knows_by_which_it_came(self, sockname, outside):
        server = GuardedServer(Mock(), PolicyStore(policies()), ManualClock())
        wire = Mock()
        wire.get_extra_info.side_effect = {"sockname": sockname}.get
        connection = server.connection()
        connection.connection_made(wire)
        assert connection.outside is outside
        connection.connection_lost(None)
        await server.shutdown(0.0)

    @pytest.mark.parametrize(
        ("required", "host", "outside", "needed"),
        [
            ("auto", "127.0.0.1", False, False),
            ("auto", "127.0.0.1", True, True),
            ("auto", "0.0.0.0", False, True),
            ("auto", "0.0.0.0", True, True),
            ("false", "127.0.0.1", True, False),
            ("true", "127.0.0.1", False, True),
        ],
    )
    def test_the_open_one_opens_only_itself(self, identity, required, host, outside, needed):
        request = asked(protocol=Mock(spec=Connection, outside=outside, peername=("10.9.9.9", 1)))
        held = policies(("clients.auth.required", required), ("server.listen.host", host))
        assert keys_required_of(request, held) is needed
        if needed:
            with pytest.raises(Unauthorized):
                identity.identify(request, held, 1.0)
        else:
            assert not identity.identify(request, held, 1.0).key


class TestGuesses:
    LIMITS = (REQUIRED, ("clients.auth.guesses", "{max: 3, window: 60s, penalty: 30s}"))

    def guess(self, identity, times, now=1.0, **changes):
        for number in range(times):
            request = asked(**bearer(f"mlxd_bad{number}"), **changes)
            with pytest.raises(Unauthorized):
                identity.identify(request, policies(*self.LIMITS), now)

    def test_an_address_that_guesses_is_refused_whatever_key_it_has(self, identity):
        self.guess(identity, 3)
        for headers in (bearer(GOOD), bearer("mlxd_bad"), bearer("")):
            with pytest.raises(TooManyGuesses) as refused:
                identity.identify(asked(**headers), policies(*self.LIMITS), 11.0)
            assert refused.value.retry_after == 20.0
        other = asked(peer="10.9.9.8", **bearer(GOOD))
        assert identity.identify(other, policies(*self.LIMITS), 11.0).key == "a-1"
        again = asked(**bearer(GOOD))
        assert identity.identify(again, policies(*self.LIMITS), 31.1).key == "a-1"

    def test_it_is_told_whether_the_daemon_lives_all_the_same(self, identity):
        self.guess(identity, 3)
        request = asked("/livez", **bearer(GOOD))
        assert not identity.identify(request, policies(*self.LIMITS), 2.0).key

    @pytest.mark.parametrize("path", sorted(OPEN))
    def test_a_guess_is_one_where_no_key_is_needed_too(self, identity, path):
        for number in range(3):
            request = asked(path, **bearer(f"mlxd_bad{number}"))
            identity.identify(request, policies(*self.LIMITS), 1.0)
        with pytest.raises(TooManyGuesses):
            identity.identify(asked(), policies(*self.LIMITS), 1.0)

    def test_a_key_that_an_address_came_with_before_stays_good_there(self, identity):
        held = policies(*self.LIMITS)
        assert identity.identify(asked(**bearer(GOOD)), held, 1.0).key == "a-1"
        self.guess(identity, 3)
        self.guess(identity, 3, peer="10.9.9.8")
        assert identity.identify(asked(**bearer(GOOD)), held, 2.0).key == "a-1"
        assert identity.identify(asked("/health", **bearer(GOOD)), held, 2.0).key == "a-1"
        for request in (asked(**bearer("mlxd_bad")), asked(peer="10.9.9.8", **bearer(GOOD))):
            with pytest.raises(TooManyGuesses):
                identity.identify(request, held, 2.0)

    @pytest.mark.parametrize(
        ("secret", "said"), [("mlxd_over", "has expired"), ("mlxd_gone", "was revoked")]
    )
    def test_a_key_that_is_over_is_no_guess(self, identity, secret, said):
        for headers in (bearer(secret), {"x_api_key": secret, **bearer("ollama")}):
            for _ in range(3):
                with pytest.raises(Unauthorized, match=said):
                    identity.identify(asked(**headers), policies(*self.LIMITS), 1.0)

    def test_nothing_is_a_guess_while_keys_cannot_be_read(self, identity, keys):
        keys.certain = False
        self.guess(identity, 9)

    def test_the_same_unknown_key_again_is_no_new_guess(self, identity):
        self.guess(identity, 2)
        self.guess(identity, 2)
        for _ in range(9):
            self.guess(identity, 1, now=50.0)
        with pytest.raises(Unauthorized):
            identity.identify(asked(**bearer("mlxd_other")), policies(*self.LIMITS), 50.0)
        with pytest.raises(TooManyGuesses):
            identity.identify(asked(**bearer(GOOD)), policies(*self.LIMITS), 50.0)

    @pytest.mark.parametrize(
        ("secret", "certain", "in_vain"),
        [
            ("mlxd_bad", True, True),
            ("mlxd_bad", False, False),
            ("mlxd_over", False, True),
            ("", False, True),
        ],
    )
    def test_whose_key_may_be_known_in_a_moment_may_come_again(
        self, identity, keys, secret, certain, in_vain
    ):
        """As while an editor writes the file of keys anew."""
        keys.certain = certain
        with pytest.raises(Unauthorized) as refused:
            identity.identify(asked(**bearer(secret)), policies(*self.LIMITS), 1.0)
        assert refused.value.in_vain is in_vain

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
        good = asked(X_Forwarded_For="203.0.113.5", **bearer(GOOD))
        other = asked(X_Forwarded_For="203.0.113.6", **bearer(GOOD))
        for number in range(3):
            bad = asked(X_Forwarded_For="203.0.113.5", **bearer(f"mlxd_bad{number}"))
            with pytest.raises(Unauthorized):
                identity.identify(bad, proxied, 1.0)
        with pytest.raises(TooManyGuesses):
            identity.identify(good, proxied, 1.0)
        assert identity.identify(other, proxied, 1.0).address == "203.0.113.6"


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
        assert response.headers["X-Should-Retry"] == "false", "else Claude Code asks ten times"
        assert response.headers["X-Mlxd-Policy-Key"] == "clients.auth.required"
        assert said in response.text.replace(" ", "")
        assert rejected == [{"model": "", "client": "10.9.9.9"}]

    async def test_a_guesser_is_told_when_to_come_again(self, answer):
        for number in range(10):
            wrong = bearer(f"mlxd_SECRET{number}")
            assert (await answer("/v1/models", **wrong)).status == 401
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
