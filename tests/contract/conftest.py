"""A daemon that may be asked anything: its state is thrown away, and no hub can be reached."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.holding import Contract
from tests.contract.throwaway import throwaway
from tests.support.daemon import Daemon


@pytest.fixture(scope="session")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder: Path = tmp_path_factory.mktemp("contract")
    with throwaway(folder) as running:
        yield running


@pytest.fixture(scope="session")
def contract(asked: Daemon) -> Contract:
    return Contract(asked)
