"""What one address may hold: connections, and behind proxies requests."""

from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from mlxd.core.clock import ManualClock
from mlxd.core.errors import Overloaded
from mlxd.policy.load import Override, load
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.store import PolicyStore
from mlxd.server.addresses import AUTO, Addresses, most_of
from mlxd.server.connections import GuardedServer

FAR = "203.0.113.5"
PROXY = "10.0.0.1"
PROXIED = ("clients.trusted_proxies", "[10.0.0.0/8]")


def policies(*overrides: tuple[str, str]) -> PolicySet:
    return load(None, [Override(key, text, "a test", yaml=True) for key, text in overrides])


def limited(most: int | str) -> tuple[str, str]:
    return ("server.http.per_ip", str(most))


@pytest.fixture
def store() -> PolicyStore:
    return PolicyStore(policies(limited(2), PROXIED))


@pytest.fixture
def addresses(store: PolicyStore) -> Addresses:
    return Addresses(store, ManualClock())


def come(addresses: Addresses, peer: str) -> bool:
    """Whether one more connection is let in."""
    if not addresses.has_room(peer):
        return False
    addresses.connect(peer)
    return True


def through(peer: str, *told: str) -> Any:
    headers = SimpleNamespace(getall=lambda _name, _other: told)
    return SimpleNamespace(remote=peer, headers=headers)


def test_one_connection_too_many_is_refused_until_another_ends(addresses: Addresses) -> None:
    assert come(addresses, FAR)
    assert come(addresses, FAR)
    assert not come(addresses, FAR)
    assert come(addresses, "203.0.113.6")
    addresses.disconnect(FAR)
    assert come(addresses, FAR)
    assert addresses.refused == 1


def test_a_network_of_ipv6_is_one_address(addresses: Addresses) -> None:
    assert come(addresses, "2001:db8::1")
    assert come(addresses, "2001:db8::2")
    assert not come(addresses, "2001:db8::3")
    assert come(addresses, "2001:db8:0:1::1")


def test_what_is_over_is_forgotten(addresses: Addresses) -> None:
    for number in range(1000):
        assert come(addresses, f"198.51.{number >> 8}.{number & 255}")
    assert len(addresses) == 1000
    for number in range(1000):
        addresses.disconnect(f"198.51.{number >> 8}.{number & 255}")
    assert len(addresses) == 0


def test_an_edit_holds_for_the_next_connection(addresses: Addresses, store: PolicyStore) -> None:
    store.commit(policies(limited(5)), [])
    assert all(come(addresses, FAR) for _ in range(5))
    store.commit(policies(limited(2)), [])
    assert not come(addresses, FAR)
    for _ in range(4):
        addresses.disconnect(FAR)
    assert come(addresses, FAR)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.9", "::/64", "local"])
def test_this_machine_has_a_limit_where_policy_gives_a_number(address: str) -> None:
    assert most_of(address, policies()) is None
    assert most_of(address, policies(limited(3))) == 3
    assert most_of(FAR, policies()) == AUTO


def test_a_trusted_proxy_has_no_limit_of_its_own(addresses: Addresses) -> None:
    assert all(come(addresses, PROXY) for _ in range(50))


def test_those_behind_it_have_one_each(addresses: Addresses, store: PolicyStore) -> None:
    with (
        addresses.asking(through(PROXY, FAR), store.current),
        addresses.asking(through(PROXY, FAR), store.current),
        addresses.asking(through(PROXY, "203.0.113.6"), store.current),
    ):
        with (
            pytest.raises(Overloaded) as caught,
            addresses.asking(through(PROXY, FAR), store.current),
        ):
            raise AssertionError("it was let in")
        assert "server.http.per_ip: 2" in caught.value.explained()
        assert caught.value.retry_after
    with addresses.asking(through(PROXY, FAR), store.current):
        pass
    assert len(addresses) == 0


@pytest.mark.parametrize("peer", [FAR, PROXY])
def test_who_speaks_for_itself_is_counted_by_its_connections_alone(
    addresses: Addresses, store: PolicyStore, peer: str
) -> None:
    told = (FAR,) if peer == FAR else ()
    for _ in range(5):
        addresses.asking(through(peer, *told), store.current).__enter__()
    assert len(addresses) == 0


async def test_of_those_that_come_together_no_more_are_let_in(
    addresses: Addresses, store: PolicyStore
) -> None:
    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response()

    server = GuardedServer(answer, store, ManualClock(), addresses=addresses)
    assert [server.refusal(FAR) for _ in range(4)] == [b""] * 4
    told = [server.enter(FAR) for _ in range(4)]
    assert told[:2] == [b"", b""]
    assert all(b"server.http.per_ip" in words for words in told[2:])
    server.leave(FAR)
    assert server.enter(FAR) == b""
