"""Models and daemons that several tests share; made once per run."""

from __future__ import annotations

import gc
import logging
import os
import random
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.daemon import Daemon, daemon
from tests.support.examples import PROFILE
from tests.support.model_maker import Shape, make_model

settings.register_profile("suite", derandomize=True, deadline=None)
settings.register_profile("long", settings.get_profile("suite"))
settings.register_profile("explore")
settings.load_profile(PROFILE)
"""A suite that fails now and then tells nobody anything: who looks for more says `explore`."""
UNLIMITED = "concurrency: {max_in_flight: 64}\nrate_limit: []\n"


LONGEST = ("benchmarks", "system", "page", "integration", "packaging", "docs", "worker", "hub")
"""Folders of tests with processes of their own, in the order in which they begin."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long begin first: at the end, one would keep all but its own core waiting."""
    here = Path(__file__).parent

    def place(item: pytest.Item) -> int:
        folder = item.path.relative_to(here).parts[0]
        return LONGEST.index(folder) if folder in LONGEST else len(LONGEST)

    items.sort(key=lambda item: (place(item), item.path))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Of several workers each goes through the folders in an order of its own: tests that have not
    run here before are compiled by the first that comes to them, and the others read that.
    """
    report = yield
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker and isinstance(collector, pytest.Dir) and collector.path == Path(__file__).parent:
        random.Random(worker).shuffle(report.result)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What has been collected stays to the end: nobody looks through it for garbage."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


class _Own(logging.Filter):
    """Stops what is said of a process whose end an earlier test's loop was not told of."""

    def filter(self, record: logging.LogRecord) -> bool:
        """True but for what asyncio's watcher of processes says of a closed loop."""
        return "that handles pid" not in str(record.msg)


@pytest.fixture(scope="session", autouse=True)
def own_logs() -> Iterator[None]:
    """A test that reads its log reads only what came of itself."""
    asyncio, own = logging.getLogger("asyncio"), _Own()
    asyncio.addFilter(own)
    yield
    asyncio.removeFilter(own)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two small models, `tiny-a` and `tiny-b`, whose text does not repeat itself."""
    folder = tmp_path_factory.mktemp("models")
    make_model(folder / "tiny-a", Shape(spread=3.0), seed=1)
    make_model(folder / "tiny-b", Shape(spread=3.0), seed=2)
    return folder


@pytest.fixture(scope="session")
def shared_daemon(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon without limits, for tests that leave it as they found it."""
    folder = tmp_path_factory.mktemp("daemon")
    with daemon(folder, models=models, policies={"limits": UNLIMITED}) as running:
        yield running


@pytest.fixture
def start_daemon(models: Path, tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Start daemons with policies of the test's own: `start_daemon({"limits": "..."})`."""
    with ExitStack() as stack:
        count = 0

        def start(policies: Mapping[str, str] | None = None, **options: object) -> Daemon:
            nonlocal count
            count += 1
            folder = tmp_path / f"daemon{count}"
            folder.mkdir()
            settings = {"models": models, **options}
            return stack.enter_context(daemon(folder, policies=policies, **settings))  # type: ignore[arg-type]

        yield start
