"""What one address may hold: connections, and behind proxies requests."""

from types import SimpleNamespace
from typing import Any

import pytest

from mlxd.core.clock import ManualClock
from mlxd.core.errors import Overloaded
from mlxd.policy.load import Override, PolicySet, load
from mlxd.policy.store import PolicyStore
from mlxd.server.addresses import AUTO, Addresses, most_of

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


def through(peer: str, *told: str) -> Any:
    headers = SimpleNamespace(getall=lambda _name, _other: told)
    return SimpleNamespace(remote=peer, headers=headers)


def test_one_connection_too_many_is_refused_until_another_ends(addresses: Addresses) -> None:
    assert addresses.connect(FAR)
    assert addresses.connect(FAR)
    assert not addresses.connect(FAR)
    assert addresses.connect("203.0.113.6")
    addresses.disconnect(FAR)
    assert addresses.connect(FAR)
    assert addresses.refused == 1


def test_a_network_of_ipv6_is_one_address(addresses: Addresses) -> None:
    assert addresses.connect("2001:db8::1")
    assert addresses.connect("2001:db8::2")
    assert not addresses.connect("2001:db8::3")
    assert addresses.connect("2001:db8:0:1::1")


def test_what_is_over_is_forgotten(addresses: Addresses) -> None:
    for number in range(1000):
        assert addresses.connect(f"198.51.{number >> 8}.{number & 255}")
    assert len(addresses) == 1000
    for number in range(1000):
        addresses.disconnect(f"198.51.{number >> 8}.{number & 255}")
    assert len(addresses) == 0


def test_an_edit_holds_for_the_next_connection(addresses: Addresses, store: PolicyStore) -> None:
    store.commit(policies(limited(5)), [])
    assert all(addresses.connect(FAR) for _ in range(5))
    store.commit(policies(limited(2)), [])
    assert not addresses.connect(FAR)
    for _ in range(4):
        addresses.disconnect(FAR)
    assert addresses.connect(FAR)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.9", "::/64", "local"])
def test_this_machine_has_a_limit_where_policy_gives_a_number(address: str) -> None:
    assert most_of(address, policies()) is None
    assert most_of(address, policies(limited(3))) == 3
    assert most_of(FAR, policies()) == AUTO


def test_a_trusted_proxy_has_no_limit_of_its_own(addresses: Addresses) -> None:
    assert all(addresses.connect(PROXY) for _ in range(50))


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
