"""Where the daemons are."""

from __future__ import annotations

import pytest

from tests.clients_real.servers import Server, nobody, servers


@pytest.fixture(scope="session")
def main() -> Server:
    """Without limits."""
    return servers()["main"]


@pytest.fixture(scope="session")
def spent() -> Server:
    """429, whatever generates."""
    return servers()["spent"]


@pytest.fixture(scope="session")
def brief() -> Server:
    """One request every two seconds."""
    return servers()["brief"]


@pytest.fixture
def single() -> Server:
    """One slot, short bodies, and no replay."""
    server = servers()["single"]
    server.wait_until_idle()
    return server


@pytest.fixture(scope="session")
def hasty() -> Server:
    """Ends each generation after 400 ms."""
    return servers()["hasty"]


@pytest.fixture(scope="session")
def dead() -> str:
    """An address where nothing listens."""
    return nobody()
