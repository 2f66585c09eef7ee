"""Which policies a daemon begins with, and where it listens, when sockets were handed to it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from mlxd.cli import listening
from mlxd.cli.listening import Found, Taken, Unusable
from mlxd.policy.boot import boot
from mlxd.policy.explain import explain
from mlxd.policy.history import history_of
from mlxd.policy.keys_file import demand
from mlxd.policy.load import Override, PolicyErrors
from mlxd.server.inherited import Inherited
from tests.support.daemon import free_port, write_policies

OPEN = {"clients": "auth: {required: false}\n"}


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


@pytest.fixture
def find(tmp_path: Path) -> Callable[..., Found]:
    """Begin with these policy files."""

    def found(files: dict[str, str], inherited: Inherited, *own: Override) -> Found:
        folder = write_policies(tmp_path / "policies", files)
        state = tmp_path / "state"
        start = partial(
            boot, folder, history=history_of(state), demand=partial(demand, state=state)
        )
        return listening.find(start, own, inherited)

    return found


def test_host_and_port_are_the_sockets_and_policies_name_it(
    find: Callable[..., Found], sock: socket.socket
) -> None:
    """Files and flags that say otherwise are told, and what they say is not judged."""
    inherited = Inherited("systemd", (sock,), warnings=("another",))
    flag = Override("server.listen.port", "12000", "--port")
    files = {"server": "listen:\n  port: 11999\n  host: 0.0.0.0\n"}
    found = find(files, inherited, flag)
    port = sock.getsockname()[1]
    [value] = explain(found.booted.policies, "server.listen.port")
    assert (value["value"], value["source"]) == (str(port), "socket http of systemd")
    assert [one["source"] for one in value["shadowed"]] == ["--port", "server.yaml:3"]
    assert found.booted.policies.server.listen.host == "127.0.0.1"
    bound = listening.bound(found, inherited)
    assert (bound.socks, bound.shared) == ((sock,), True)
    assert listening.vain([flag], found, inherited) == [
        "another",
        "--port: 12000 has no effect: the socket http of systemd is served,"
        f" at 127.0.0.1:{port}",
    ]  # fmt: skip


def test_one_that_others_can_reach_needs_the_same_word_as_an_address_of_ours(
    find: Callable[..., Found],
) -> None:
    with socket.create_server(("0.0.0.0", 0)) as sock:
        inherited = Inherited("systemd", (sock,))
        with pytest.raises(PolicyErrors, match=r"^socket http of systemd: server\.listen\.host: "):
            find({}, inherited)
        assert find(OPEN, inherited).inherits


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_never_declines_it_whatever_it_is(find: Callable[..., Found], host: str) -> None:
    port = free_port()
    with socket.create_server((host, 0)) as sock:
        inherited = Inherited("systemd", (sock.dup(),))
        found = find({"server": f"listen: {{inherit: never, port: {port}}}\n"}, inherited)
        assert (found.inherits, found.overrides) == (False, ())
        bound = listening.bound(found, inherited)
        assert not bound.shared
        [own] = bound.socks
        with own:
            assert own.getsockname() == ("127.0.0.1", port)
        assert inherited.socks[0].fileno() < 0


def test_one_that_is_declined_is_named_where_its_address_is_wanted(
    find: Callable[..., Found], sock: socket.socket
) -> None:
    inherited = Inherited("systemd", (sock,))
    port = sock.getsockname()[1]
    found = find({"server": f"listen: {{inherit: never, port: {port}}}\n"}, inherited)
    with pytest.raises(Taken, match="is the socket http of systemd, which"):
        listening.bound(found, inherited)


def test_one_that_cannot_be_served_is_refused_unless_it_is_declined(
    find: Callable[..., Found],
) -> None:
    inherited = Inherited("launchd", problem="the socket http of launchd is odd")
    with pytest.raises(Unusable, match="is odd"):
        listening.bound(find({}, inherited), inherited)
    port = free_port()
    found = find({"server": f"listen: {{inherit: never, port: {port}}}\n"}, inherited)
    [own] = listening.bound(found, inherited).socks
    own.close()


def test_broken_files_say_what_is_wrong_with_them(
    find: Callable[..., Found], sock: socket.socket
) -> None:
    with pytest.raises(PolicyErrors, match=r"limits\.yaml"):
        find({"limits": "nonsense: 1\n"}, Inherited("systemd", (sock,)))
