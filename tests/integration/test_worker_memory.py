"""The daemon's handle and a real engine process: budgets, needs, and an engine without memory."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from mlxd.control.generation import Limits
from mlxd.control.order import Order
from mlxd.control.process import Known
from mlxd.control.worker import Worker
from mlxd.core.clock import SystemClock
from mlxd.core.errors import ContextExceeded, InsufficientMemory, MlxdError, PolicyLine
from mlxd.core.events import Burst, Finished
from mlxd.core.footprint import Moment
from mlxd.core.models import ModelSpec
from mlxd.core.request import GenerationRequest, Sampling
from mlxd.ipc import messages as ipc
from tests.integration.reciter import make_fragile

pytestmark = pytest.mark.mlx

FREELY = 1 << 24


def order(prompt: int, *, tokens: int = 5, last: int = 9, wait: float = 60.0) -> Order:
    limits = Limits(60, 60, 60, 5, lambda key: PolicyLine(key, "x", "y"))
    ids = (9,) * (prompt - 1) + (last,)
    request = GenerationRequest(model="m", token_ids=ids, max_tokens=tokens)
    return Order(
        request, Sampling(temperature=0.0), 4096, 4096, 4096, limits, 0.0,
        expected_output=64, wait_seconds=wait,
    )  # fmt: skip


async def finish(worker: Worker, one: Order) -> Finished:
    events = [event async for burst in worker.generate(one) for event in burst]
    assert isinstance(events[-1], Finished)
    return events[-1]


async def _all(bursts: AsyncIterator[Burst]) -> list[Burst]:
    return [burst async for burst in bursts]


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_fragile(tmp_path_factory.mktemp("fragile") / "m")


@pytest.fixture
async def worker(fragile: Path, tmp_path: Path) -> AsyncIterator[Worker]:
    """With room for some 300 tokens."""
    spec = ModelSpec(str(fragile), 4096, trust_remote_code=True)
    running = await Worker.spawn(
        spec, "m", SystemClock(), temporary=tmp_path, budget=ipc.Budget(1 << 30, 0, FREELY)
    )
    await running.until_ready()
    print_of = running.footprint
    assert print_of is not None
    running.set_budget(ipc.Budget(print_of.peak_bytes([], [512], prompts=[256]), 0, FREELY))
    yield running
    await running.stop(5)


@pytest.mark.slow
async def test_a_worker_is_told_what_is_known_of_its_model(worker: Worker, tmp_path: Path) -> None:
    assert worker.footprint is not None
    told = dataclasses.replace(worker.footprint, decode=(Moment(row=12345),))
    other = await Worker.spawn(
        worker.spec, "m", SystemClock(), temporary=tmp_path, known=Known(told, measured=True)
    )
    await other.until_ready()
    assert other.footprint == told
    await other.stop(5)


async def test_a_model_has_a_footprint_and_holds_what_it_says(worker: Worker) -> None:
    assert worker.footprint is not None
    assert worker.memory.active == worker.footprint.weights_bytes


async def test_more_memory_is_granted_on_demand(worker: Worker) -> None:
    needs: list[int] = []

    def grant(asking: Worker, need: ipc.Need) -> None:
        needs.append(need.bytes)
        assert asking.budget is not None
        asking.set_budget(replace(asking.budget, bytes=need.bytes, answers=need.id))

    worker.on_need = grant
    assert (await finish(worker, order(2000))).completion_tokens == 5
    assert len(needs) == 1


async def test_a_denied_request_fails_with_what_was_compared(worker: Worker) -> None:
    with pytest.raises(InsufficientMemory) as refused:
        await finish(worker, order(2000))
    assert refused.value.needed_bytes > refused.value.available_bytes > 0
    assert refused.value.retry_after
    assert "MiB" in refused.value.message or "KiB" in refused.value.message
    assert (await finish(worker, order(20))).reason == "length", "others are served"


async def test_a_prompt_that_can_never_fit_is_told_what_would(worker: Worker) -> None:
    assert worker.budget is not None
    worker.set_budget(replace(worker.budget, most=worker.budget.bytes))
    with pytest.raises(ContextExceeded, match="tokens together would fit"):
        await finish(worker, order(2000))


async def test_an_engine_without_memory_is_known_and_its_clients_are_told(worker: Worker) -> None:
    over: list[Worker] = []
    worker.on_end = over.append
    failed: MlxdError | None = None
    seen = 0
    try:
        async for burst in worker.generate(order(200, tokens=5, last=77)):
            seen += len(burst)
    except MlxdError as error:
        failed = error
    assert isinstance(failed, InsufficientMemory)
    assert "ran out of memory" in failed.message
    assert over == [worker]
    assert worker.out_of_memory
    assert not worker.alive


@pytest.mark.slow
async def test_the_newest_is_cancelled_in_favour_of_the_machine(worker: Worker) -> None:
    bursts = worker.generate(order(5, tokens=200))
    await anext(bursts)
    assert worker.end_lowest(InsufficientMemory("memory is short"))
    with pytest.raises(InsufficientMemory, match="memory is short"):
        await _all(bursts)
    assert not worker.end_lowest(InsufficientMemory("nobody"))
    assert (await finish(worker, order(5))).completion_tokens == 5


async def test_a_worker_is_told_how_to_load_its_model(fragile: Path, tmp_path: Path) -> None:
    folder = json.loads((fragile / "config.json").read_text())
    assert folder["model_file"]
    spec = ModelSpec(str(fragile), 4096)
    refusing = await Worker.spawn(spec, "m", SystemClock(), temporary=tmp_path)
    with pytest.raises(MlxdError, match="trust_remote_code"):
        await refusing.until_ready()
    await refusing.stop(5)
