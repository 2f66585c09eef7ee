"""Small models, made once; and workers that serve them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mlxd.worker import stand_in
from tests.support.model_maker import (
    THINKING,
    TOOL_TEMPLATE,
    TOOLS,
    UNMERGEABLE,
    Shape,
    make_model,
)
from tests.support.worker_process import WorkerProcess

stand_in.install()
"""Before a test module imports mlx-lm: as in a worker."""
MakeModel = Callable[[Shape], Path]


@pytest.fixture(scope="session")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    made: dict[str, Path] = {}

    def model_of(shape: Shape) -> Path:
        key = repr(shape)
        if key not in made:
            made[key] = make_model(tmp_path_factory.mktemp("model") / "m", shape)
        return made[key]

    return model_of


@pytest.fixture(scope="session")
def varied(model_of: MakeModel) -> Path:
    """Its greedy text does not repeat itself."""
    return model_of(Shape(spread=3.0))


@pytest.fixture(scope="session")
def marked(model_of: MakeModel) -> Path:
    """Its tokenizer knows thinking and tool calls."""
    return model_of(Shape(spread=3.0, markers=THINKING + TOOLS, template=TOOL_TEMPLATE))


@pytest.fixture(scope="session")
def worker(varied: Path) -> Iterator[WorkerProcess]:
    """Shared: a test leaves nothing running in it."""
    process = WorkerProcess(varied)
    yield process
    process.close()


@pytest.fixture(scope="session")
def marked_worker(marked: Path) -> Iterator[WorkerProcess]:
    process = WorkerProcess(marked)
    yield process
    process.close()


@pytest.fixture(scope="session")
def serial_worker(model_of: MakeModel) -> Iterator[WorkerProcess]:
    process = WorkerProcess(model_of(replace(UNMERGEABLE, spread=3.0)))
    yield process
    process.close()
