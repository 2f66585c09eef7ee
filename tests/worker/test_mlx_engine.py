"""The engine itself, against mlx-lm's own single-stream generation."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from mlxd.worker.engine import Engine, Prompt
from mlxd.worker.pace import Pace
from tests.support.model_maker import Shape
from tests.worker.conftest import MakeModel

pytestmark = pytest.mark.mlx


@pytest.fixture(scope="module")
def model(model_of: MakeModel) -> Any:
    from mlxd.worker.loading import load, prepare_mlx

    prepare_mlx()
    return load(model_of(Shape(spread=3.0))).model


def prompt(n: int, length: int, **more: Any) -> Prompt:
    from mlxd.worker.sampling import greedy

    tokens = [(n * 37 + i * 11) % 500 + 2 for i in range(length)]
    return Prompt(tokens, more.pop("max_tokens", 20), greedy, **more)


def run(engine: Engine, waiting: list[Prompt], *, every: int = 3) -> dict[int, list[int]]:
    """Insert one of `waiting` every few steps; the tokens of each, by its place in the list."""
    tokens: dict[int, list[int]] = {}
    step = 0
    waiting = list(waiting)
    while waiting or len(engine):
        if waiting and step % every == 0:
            engine.insert([waiting.pop(0)])
        for token in engine.step().tokens:
            tokens.setdefault(token.uid, []).append(token.token)
        step += 1
    return tokens


def test_a_shared_batch_gives_what_generate_step_gives(model):
    import mlx.core as mx
    from mlx_lm.generate import generate_step

    from mlxd.worker.mlx_engine import MlxEngine
    from mlxd.worker.serial import SerialEngine

    prompts = [prompt(n, length) for n, length in enumerate([5, 60, 3, 200, 1, 17])]
    alone = {
        n: [token for token, _ in generate_step(mx.array(p.tokens), model, max_tokens=20)]
        for n, p in enumerate(prompts)
    }
    assert run(MlxEngine(model, []), prompts) == alone
    assert run(SerialEngine(model, []), prompts) == alone


def test_an_end_token_ends_a_sequence(model):
    from mlxd.worker.mlx_engine import MlxEngine
    from mlxd.worker.serial import SerialEngine

    for make in (MlxEngine, SerialEngine):
        first = run(make(model, []), [prompt(1, 9)])[0]
        engine = make(model, [first[4]])
        cut = run(engine, [prompt(1, 9)])[0]
        assert cut == first[: first.index(first[4]) + 1]


def test_log_probabilities_are_worked_out_for_those_who_asked(model):
    import mlx.core as mx

    from mlxd.worker.mlx_engine import MlxEngine

    engine = MlxEngine(model, [])
    engine.insert([prompt(1, 9, scored=True), prompt(2, 9)])
    rows: dict[int, list[Any]] = {0: [], 1: []}
    while len(engine):
        for token in engine.step().tokens:
            rows[token.uid].append(token.logprobs)
    assert all(row is None for row in rows[1][1:])
    for row in rows[0]:
        assert abs(mx.logsumexp(row.astype(mx.float32)).item()) < 1e-4


def steps_to_first(engine: Engine, uid: int) -> int:
    for n in range(100):
        if any(token.uid == uid for token in engine.step().tokens):
            return n
    raise AssertionError("no token")


def timeless() -> float:
    """The clock of a machine that takes no time for anything."""
    return 0.0


def test_a_long_prompt_is_cut_smaller_while_others_decode(model):
    from mlxd.worker.mlx_engine import MlxEngine

    engine = MlxEngine(model, [], clock=timeless)
    alone = steps_to_first(engine, *engine.insert([prompt(1, 2000)]))
    engine = MlxEngine(model, [], clock=timeless)
    engine.insert([prompt(2, 3, max_tokens=90)])
    for _ in range(4):
        engine.step()
    beside = steps_to_first(engine, *engine.insert([prompt(1, 2000)]))
    assert alone <= 3 < 5 <= beside


class Spy:
    """A model that notes the shapes it is called with."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.shapes: list[tuple[int, int]] = []

    def __call__(self, tokens: Any, cache: Any = None) -> Any:
        self.shapes.append(tokens.shape)
        return self._model(tokens, cache=cache)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    @property
    def chunks(self) -> list[int]:
        """Tokens of each prefill chunk, padding included."""
        return [rows * width for rows, width in self.shapes if width > 1]


@pytest.mark.parametrize("decoding", [False, True])
def test_a_step_prefills_a_bounded_number_of_tokens(model, decoding):
    from mlxd.core.footprint import PREFILL_ALONE, PREFILL_BESIDE_DECODE
    from mlxd.worker.mlx_engine import MlxEngine

    spy = Spy(model)
    engine = MlxEngine(spy, [], clock=timeless)
    if decoding:
        engine.insert([prompt(9, 1, max_tokens=1000)])
        engine.step()
    uids = engine.insert([prompt(n, 700 + 50 * n, max_tokens=2) for n in range(12)])
    spy.shapes.clear()
    first: set[int] = set()
    while not first.issuperset(uids):
        before = len(spy.chunks)
        first.update(token.uid for token in engine.step().tokens)
        assert len(spy.chunks) - before <= 1
    most = PREFILL_BESIDE_DECODE if decoding else PREFILL_ALONE
    assert most * 0.8 < max(spy.chunks) <= most


def test_eight_prompts_of_two_hundred_tokens_are_one_chunk(model):
    from mlxd.worker.mlx_engine import MlxEngine

    spy = Spy(model)
    engine = MlxEngine(spy, [], clock=timeless)
    run(engine, [prompt(0, 50, max_tokens=1)])
    spy.shapes.clear()
    engine.insert([prompt(n, 200) for n in range(8)])
    while len(engine):
        engine.step()
    assert spy.chunks == [8 * 199]


class Machine(Spy):
    """One that needs time, on a clock that nothing else moves."""

    def __init__(self, model: Any, token_seconds: float, decode_seconds: float = 0.0) -> None:
        super().__init__(model)
        self.token_seconds = token_seconds
        self.decode_seconds = decode_seconds
        self.now = 0.0

    def __call__(self, tokens: Any, cache: Any = None) -> Any:
        rows, width = tokens.shape
        prefill = rows * width * self.token_seconds if width > 1 else 0.0
        self.now += max(prefill, self.decode_seconds)
        return super().__call__(tokens, cache)

    def clock(self) -> float:
        return self.now

    def widths(self, engine: Engine, *prompts: Prompt) -> list[int]:
        """Tokens of each of these in the chunks that they are read in together."""
        self.shapes.clear()
        uids = engine.insert(prompts)
        steps_to_first(engine, uids[-1])
        return [width for _, width in self.shapes if width > 1]


SLOW = 2.0**-6
"""Seconds of a token: 128 take two seconds, 32 half a second."""
FAST = 2.0**-16


def test_on_a_slow_machine_a_chunk_takes_so_long_and_no_longer(model):
    from mlxd.worker.mlx_engine import MlxEngine

    machine = Machine(model, SLOW)
    engine = MlxEngine(machine, [], clock=machine.clock)
    assert machine.widths(engine, prompt(1, 600, max_tokens=1)) == [64, *[128] * 4, 23]
    assert machine.widths(engine, prompt(1, 300, max_tokens=1)) == [128, 128, 43]
    four = [prompt(n, 90, max_tokens=1) for n in range(4)]
    assert machine.widths(engine, *four) == [32, 32, 25]


def test_on_a_slow_machine_a_chunk_beside_a_decode_takes_half_a_second(model):
    from mlxd.worker.mlx_engine import MlxEngine

    machine = Machine(model, SLOW, decode_seconds=2.0**-4)
    engine = MlxEngine(machine, [], clock=machine.clock)
    steps_to_first(engine, *engine.insert([prompt(9, 1, max_tokens=1000)]))
    engine.step()
    assert machine.widths(engine, prompt(1, 200, max_tokens=1)) == [64, *[32] * 4, 7]
    assert machine.widths(engine, *[prompt(n, 20, max_tokens=1) for n in range(4)]) == [8, 8, 3]


def test_a_step_prefills_something_however_slow_it_is(model):
    from mlxd.worker.mlx_engine import MlxEngine

    machine = Machine(model, 1.0)
    engine = MlxEngine(machine, [], clock=machine.clock)
    assert machine.widths(engine, prompt(1, 100, max_tokens=1)) == [64, 16, 16, 3]
    assert machine.widths(engine, *[prompt(n, 19, max_tokens=1) for n in range(3)]) == [6, 6, 6]


@pytest.mark.slow
def test_on_a_fast_machine_one_prompt_is_cut_once(model):
    from mlxd.worker.mlx_engine import MlxEngine

    machine = Machine(model, FAST)
    engine = MlxEngine(machine, [], clock=machine.clock)
    assert machine.widths(engine, prompt(1, 200, max_tokens=1)) == [64, 135]
    for n in range(3):
        assert machine.widths(engine, prompt(n, 200, max_tokens=1)) == [199]
    assert machine.widths(engine, prompt(1, 3000, max_tokens=1)) == [2048, 951]


@pytest.mark.slow
def test_a_machine_that_is_fast_again_is_seen_to_be(model):
    from mlxd.worker.mlx_engine import MlxEngine

    machine = Machine(model, 1.0)
    engine = MlxEngine(machine, [], clock=machine.clock)
    assert machine.widths(engine, prompt(1, 120, max_tokens=1))[1:] == [16, 16, 16, 7]
    machine.token_seconds = FAST
    widths = machine.widths(engine, prompt(1, 3000, max_tokens=1))
    assert len(widths) <= 14
    assert machine.widths(engine, prompt(1, 2048, max_tokens=1)) == [2047]


def test_a_machine_that_gets_slow_is_seen_after_one_chunk(model):
    from mlxd.worker.mlx_engine import MlxEngine

    machine = Machine(model, FAST)
    engine = MlxEngine(machine, [], clock=machine.clock)
    machine.widths(engine, prompt(1, 200, max_tokens=1))
    machine.token_seconds = SLOW
    first, *others = machine.widths(engine, prompt(1, 3000, max_tokens=1))
    assert first == 2048
    assert 128 <= max(others) < 140


@pytest.mark.slow
def test_what_a_short_prompt_takes_is_not_laid_on_each_of_its_tokens(model):
    from mlxd.worker.mlx_engine import MlxEngine

    machine = Machine(model, FAST, decode_seconds=2.0**-5)
    engine = MlxEngine(machine, [], clock=machine.clock)
    machine.widths(engine, prompt(1, 200, max_tokens=1))
    for _ in range(20):
        machine.widths(engine, prompt(1, 3, max_tokens=1))
    assert machine.widths(engine, prompt(1, 2000, max_tokens=1)) == [1999]


@pytest.mark.slow
def test_small_chunks_are_parts_of_those_that_memory_was_counted_for(model):
    from mlxd.core.footprint import PREFILL_ALONE
    from mlxd.worker.mlx_engine import MlxEngine

    for seconds in (FAST, SLOW, 2.0**-8 * 1.5):
        machine = Machine(model, seconds)
        engine = MlxEngine(machine, [], clock=machine.clock)
        widths = machine.widths(engine, prompt(1, 3000, max_tokens=1))
        ends = {sum(widths[:n]) for n in range(len(widths) + 1)}
        assert {PREFILL_ALONE, 2999} <= ends


def test_time_changes_no_text(model):
    from mlxd.worker.mlx_engine import MlxEngine
    from mlxd.worker.serial import SerialEngine

    prompts = [prompt(n, length) for n, length in enumerate([5, 60, 3, 200, 1, 170])]
    wanted = run(MlxEngine(model, [], clock=timeless), prompts)
    for make in (MlxEngine, SerialEngine):
        machine = Machine(model, 0.1, decode_seconds=0.3)
        assert run(make(machine, [], clock=machine.clock), prompts) == wanted


def test_one_lane_takes_no_longer_for_a_chunk_either(model):
    from mlxd.worker.serial import PREFILL_CHUNK, SerialEngine

    machine = Machine(model, SLOW)
    engine = SerialEngine(machine, [], clock=machine.clock)
    widths = machine.widths(engine, prompt(1, 700, max_tokens=1))
    assert widths == [64, 128, 128, 128, PREFILL_CHUNK - 448, 128, 59]
    machine.token_seconds = FAST
    machine.widths(engine, prompt(1, 700, max_tokens=1))
    assert machine.widths(engine, prompt(1, 700, max_tokens=1)) == [PREFILL_CHUNK, 187]


def test_quantised_caches_are_read_in_the_same_chunks_at_any_pace(model):
    from mlxd.worker.serial import PREFILL_CHUNK, SerialEngine

    class Unquantised:
        bits, group = None, 64

        def apply(self, cache: Any) -> None:
            """As it is."""

    machine = Machine(model, SLOW)
    engine = SerialEngine(machine, [], Unquantised(), clock=machine.clock)  # type: ignore[arg-type]
    for _ in range(2):
        assert machine.widths(engine, prompt(1, 700, max_tokens=1)) == [PREFILL_CHUNK, 187]


def test_a_short_prompt_among_long_ones_does_not_wait_for_them(model):
    from mlxd.core.footprint import PREFILL_ALONE, PREFILL_BESIDE_DECODE
    from mlxd.worker.mlx_engine import MlxEngine

    spy = Spy(model)
    engine = MlxEngine(spy, [], clock=timeless)
    long = [prompt(n, 1500) for n in range(5)]
    uids = engine.insert([*long, prompt(7, 4)])
    steps_to_first(engine, uids[-1])
    assert sum(spy.chunks) <= PREFILL_ALONE + 2 * PREFILL_BESIDE_DECODE


def test_each_sequence_is_said_to_start_once_when_its_prefill_begins(model):
    from mlxd.core.footprint import PREFILL_ROWS
    from mlxd.worker.mlx_engine import MlxEngine
    from mlxd.worker.serial import SerialEngine

    for make, together in ((MlxEngine, PREFILL_ROWS), (SerialEngine, 1)):
        engine: Engine = make(model, [])
        uids = engine.insert([prompt(n, 30 * n + 1, max_tokens=5) for n in range(12)])
        engine.remove(uids[10:11])
        step = engine.step()
        assert list(step.started) == uids[:together]
        started = list(step.started)
        while len(engine):
            step = engine.step()
            started += step.started
            assert {token.uid for token in step.tokens} <= set(started)
        assert started == [*uids[:10], uids[11]]


@pytest.mark.parametrize("stage", [0, 1, 6])
def test_a_removed_sequence_leaves_at_any_stage(model, stage):
    from mlxd.worker.mlx_engine import MlxEngine

    engine = MlxEngine(model, [])
    (uid,) = engine.insert([prompt(1, 300)])
    for _ in range(stage):
        engine.step()
    engine.remove([uid, 999])
    assert len(engine) == 0
    assert all(token.uid != uid for token in engine.step().tokens)


def test_an_empty_prompt_is_a_value_error_and_nothing_is_queued(model):
    from mlxd.worker.mlx_engine import MlxEngine
    from mlxd.worker.serial import SerialEngine

    for make in (MlxEngine, SerialEngine):
        engine: Engine = make(model, [])
        with pytest.raises(ValueError, match="prompt"):
            engine.insert([prompt(1, 3), prompt(1, 0)])
        assert len(engine) == 0


def test_no_generator_wires_memory(model, monkeypatch):
    import mlx.core as mx

    from mlxd.worker.mlx_engine import MlxEngine

    def wire(*_: Any) -> int:
        raise AssertionError("wired")

    monkeypatch.setattr(mx, "set_wired_limit", wire)
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 2**30})
    MlxEngine(model, [])
    assert sys.modules["mlx_lm.generate"].maybe_set_recommended_wired_limit() is None


def test_on_a_gpu_a_short_prompt_is_read_in_one_piece_from_the_first_on() -> None:
    assert Pace(gpu=True).tokens(1, decoding=False) == 512
    assert Pace().tokens(1, decoding=False) == 64
