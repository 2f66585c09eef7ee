"""The engine itself, against mlx-lm's own single-stream generation."""

from __future__ import annotations

import sys
from itertools import count
from typing import Any

import pytest

from mlxd.worker.engine import Engine, Prompt
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


def test_keys_and_values_of_a_prompt_that_is_read_alone_are_not_copied(model, monkeypatch):
    import mlx.core as mx
    from mlx_lm.generate import generate_step
    from mlx_lm.models.cache import BatchKVCache

    from mlxd.worker.mlx_engine import MlxEngine

    one, two = prompt(0, 300), prompt(1, 600)
    said = [
        [token for token, _ in generate_step(mx.array(p.tokens), model, max_tokens=20)]
        for p in (one, two)
    ]
    monkeypatch.setattr(BatchKVCache, "merge", lambda caches: pytest.fail("they are copied"))
    engine = MlxEngine(model, [])
    assert run(engine, [one]) == {0: said[0]}
    assert run(engine, [two]) == {1: said[1]}


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


class Hollow:
    """A model that takes as many tokens as any, and computes nothing. It says 0 for ever."""

    def make_cache(self) -> list[Any]:
        from mlx_lm.models.cache import KVCache

        return [KVCache()]

    def __call__(self, tokens: Any, cache: Any = None) -> Any:
        import mlx.core as mx

        nothing = mx.zeros((tokens.shape[0], 1, tokens.shape[1], 1))
        cache[0].update_and_fetch(nothing, nothing)
        return mx.zeros((*tokens.shape, 4))


class Spy(Hollow):
    """It notes the shapes it is called with."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, int]] = []

    def __call__(self, tokens: Any, cache: Any = None) -> Any:
        self.shapes.append(tokens.shape)
        return super().__call__(tokens, cache)

    @property
    def chunks(self) -> list[int]:
        """Tokens of each prefill chunk, padding included."""
        return [rows * width for rows, width in self.shapes if width > 1]


class Machine(Spy):
    """One that needs time, on a clock that nothing else moves."""

    def __init__(self, token_seconds: float, decode_seconds: float = 0.0) -> None:
        super().__init__()
        self.token_seconds = token_seconds
        self.decode_seconds = decode_seconds
        self.now = 0.0
        self._under_way = 0.0
        """Of a decode step, which nobody waits for before the next step."""

    def __call__(self, tokens: Any, cache: Any = None) -> Any:
        rows, width = tokens.shape
        self.now += self._under_way
        if width > 1:
            self.now += max(rows * width * self.token_seconds, self.decode_seconds)
        self._under_way = self.decode_seconds if width == 1 else 0.0
        return super().__call__(tokens, cache)

    def clock(self) -> float:
        return self.now

    def widths(self, engine: Engine, *prompts: Prompt) -> list[int]:
        """Tokens of each of these in the chunks that they are read in."""
        self.shapes.clear()
        uids = engine.insert(prompts)
        steps_to_first(engine, uids[-1])
        return [width for _, width in self.shapes if width > 1]


class Late(Machine):
    """Every so many chunks, one takes twice as long; none while that is 0."""

    every = 0

    def __call__(self, tokens: Any, cache: Any = None) -> Any:
        answer = super().__call__(tokens, cache)
        rows, width = tokens.shape
        if width > 1 and self.every and len(self.chunks) % self.every == 0:
            self.now += rows * width * self.token_seconds
        return answer


SLOW = 2.0**-10
"""Seconds of a token: 77 take three quarters of a tenth of a second."""
FAST = 2.0**-16


def practised(model: Any, **more: Any) -> Any:
    """An engine that knows what its chunks take: nothing, or what its clock says."""
    from mlxd.worker.mlx_engine import MlxEngine

    engine = MlxEngine(model, [], clock=more.pop("clock", timeless), **more)
    run(engine, [prompt(5, 3400, max_tokens=1)])
    return engine


def test_a_long_prompt_is_cut_smaller_while_others_decode():
    spy = Spy()
    engine = practised(spy)
    spy.shapes.clear()
    steps_to_first(engine, *engine.insert([prompt(1, 2000)]))
    assert spy.chunks == [1999]
    engine.insert([prompt(2, 3, max_tokens=90)])
    for _ in range(4):
        engine.step()
    spy.shapes.clear()
    steps_to_first(engine, *engine.insert([prompt(1, 2000)]))
    assert spy.chunks == [1024, 975]


@pytest.mark.parametrize("decoding", [False, True])
def test_a_step_prefills_a_bounded_number_of_tokens(decoding):
    from mlxd.core.footprint import PREFILL_ALONE, PREFILL_BESIDE_DECODE

    spy = Spy()
    engine = practised(spy)
    if decoding:
        engine.insert([prompt(9, 1, max_tokens=1000)])
        engine.step()
    shortest = 100 if decoding else 220
    uids = engine.insert([prompt(n, shortest + 2 * n, max_tokens=2) for n in range(25)])
    spy.shapes.clear()
    first: set[int] = set()
    while not first.issuperset(uids):
        before = len(spy.chunks)
        first.update(token.uid for token in engine.step().tokens)
        assert len(spy.chunks) - before <= 1
    most = PREFILL_BESIDE_DECODE if decoding else PREFILL_ALONE
    assert most * 0.8 < max(spy.chunks) <= most


def test_eight_prompts_of_two_hundred_tokens_are_one_chunk():
    spy = Spy()
    engine = practised(spy)
    spy.shapes.clear()
    engine.insert([prompt(n, 200) for n in range(8)])
    while len(engine):
        engine.step()
    assert spy.chunks == [8 * 199]


def test_policy_bounds_what_a_step_reads():
    from mlxd.ipc.messages import Tuning
    from mlxd.worker.tuning import Tuned

    spy = Spy()
    engine = practised(spy, tuned=Tuned(Tuning(max_tokens=300)))
    spy.shapes.clear()
    run(engine, [prompt(1, 1000, max_tokens=1)])
    assert spy.chunks == [300, 300, 300, 99]
    spy.shapes.clear()
    engine.insert([prompt(n, 100, max_tokens=1) for n in range(4)])
    while len(engine):
        engine.step()
    assert max(spy.chunks) <= 300


def test_on_a_slow_machine_a_chunk_takes_as_long_as_it_may_and_no_longer():
    machine = Machine(SLOW)
    engine = practised(machine, clock=machine.clock)
    widths = machine.widths(engine, prompt(1, 600, max_tokens=1))
    assert all(73 <= width <= 80 for width in widths[:-1])
    assert machine.widths(engine, *[prompt(n, 60, max_tokens=1) for n in range(2)]) == [59, 59]
    assert machine.widths(engine, *[prompt(n, 15, max_tokens=1) for n in range(4)]) == [14]


def test_on_a_slow_machine_a_chunk_beside_a_decode_takes_as_long_with_it():
    machine = Machine(SLOW, decode_seconds=2.0**-5)
    engine = practised(machine, clock=machine.clock)
    steps_to_first(engine, *engine.insert([prompt(9, 1, max_tokens=1000)]))
    for _ in range(3):
        engine.step()
    widths = machine.widths(engine, prompt(1, 300, max_tokens=1))
    assert all(42 <= width <= 48 for width in widths[:-1])


def test_a_step_prefills_something_however_slow_it_is():
    from mlxd.worker.mlx_engine import MlxEngine

    machine = Machine(1.0)
    engine = MlxEngine(machine, [], clock=machine.clock)
    assert machine.widths(engine, prompt(1, 140, max_tokens=1)) == [64, 32, 32, 11]


def test_small_chunks_are_parts_of_those_that_memory_was_counted_for():
    from mlxd.core.footprint import PREFILL_ALONE

    for seconds in (FAST, SLOW / 6, SLOW / 20):
        machine = Machine(seconds)
        engine = practised(machine, clock=machine.clock)
        done = 0
        for width in machine.widths(engine, prompt(1, 3000, max_tokens=1)):
            assert width <= max(PREFILL_ALONE - done % PREFILL_ALONE, PREFILL_ALONE // 2)
            done += width
        assert done == 2999


def test_answers_go_on_between_chunks_and_have_their_share():
    from mlxd.ipc.messages import Tuning
    from mlxd.worker.tuning import Tuned

    machine = Machine(SLOW, decode_seconds=2.0**-8)
    engine = practised(machine, tuned=Tuned(Tuning(decode_share=0.15)), clock=machine.clock)
    (running,) = engine.insert([prompt(9, 1, max_tokens=1000)])
    for _ in range(5):
        engine.step()
    (uid,) = engine.insert([prompt(1, 2000, max_tokens=1)])
    begun, chunks, gaps, last = machine.now, 0.0, [], machine.now
    while True:
        before = machine.now
        step = engine.step()
        chunks += 0.0 if step.tokens else machine.now - before
        if any(token.uid == running for token in step.tokens):
            gaps.append(machine.now - last)
            last = machine.now
        if any(token.uid == uid for token in step.tokens):
            break
    assert 0.82 < chunks / (machine.now - begun) < 0.88
    assert max(gaps) < 0.115


def test_time_changes_no_text(model):
    from mlxd.worker.mlx_engine import MlxEngine
    from mlxd.worker.serial import SerialEngine

    prompts = [prompt(n, length) for n, length in enumerate([5, 60, 3, 200, 1, 170])]
    wanted = run(MlxEngine(model, [], clock=timeless), prompts)
    for make in (MlxEngine, SerialEngine):
        clock = count(0.0, 0.05).__next__
        assert run(make(model, [], clock=clock), prompts) == wanted


def test_one_lane_takes_no_longer_for_a_chunk_either():
    from mlxd.worker.serial import SerialEngine

    machine = Machine(SLOW)
    engine = SerialEngine(machine, [], clock=machine.clock)
    first, *widths, _ = machine.widths(engine, prompt(1, 400, max_tokens=1))
    assert first == 64
    assert all(73 <= width <= 80 for width in widths)


def test_policy_bounds_what_one_lane_reads_at_a_time():
    from mlxd.ipc.messages import Tuning
    from mlxd.worker.serial import SerialEngine
    from mlxd.worker.tuning import Tuned

    machine = Machine(FAST)
    engine = SerialEngine(machine, [], tuned=Tuned(Tuning(max_tokens=60)), clock=machine.clock)
    assert machine.widths(engine, prompt(1, 200, max_tokens=1)) == [60, 60, 60, 19]


def test_while_there_is_no_place_nobody_looks_for_who_is_next():
    from mlxd.worker.engine import COMPLETION_BATCH
    from mlxd.worker.mlx_engine import MlxEngine
    from tests.support.prefixes import List

    class Asked(List):
        asks = 0

        def reach(self, prompt: Prompt) -> int:
            self.asks += 1
            return super().reach(prompt)

    prefixes = Asked(trimmable=True)
    engine = MlxEngine(Hollow(), [], prefixes=prefixes, clock=timeless)
    first = engine.insert([prompt(n, 9, max_tokens=99) for n in range(COMPLETION_BATCH)])
    for uid in first:
        steps_to_first(engine, uid)
    engine.insert([prompt(n, 300) for n in range(3)])
    before = prefixes.asks
    for _ in range(20):
        assert len(engine.step().tokens) == COMPLETION_BATCH
    assert prefixes.asks == before


def test_quantised_caches_are_read_in_the_same_chunks_at_any_pace():
    from mlxd.worker.serial import PREFILL_CHUNK, SerialEngine

    class Unquantised:
        bits, group = None, 64

        def apply(self, cache: Any) -> None:
            """As it is."""

    machine = Machine(SLOW)
    engine = SerialEngine(machine, [], Unquantised(), clock=machine.clock)  # type: ignore[arg-type]
    for _ in range(2):
        assert machine.widths(engine, prompt(1, 700, max_tokens=1)) == [PREFILL_CHUNK, 187]


def test_a_short_prompt_among_long_ones_does_not_wait_for_them():
    spy = Spy()
    engine = practised(spy)
    engine.insert([prompt(n, 3500) for n in range(4)])
    engine.step()
    spy.shapes.clear()
    steps_to_first(engine, *engine.insert([prompt(7, 4)]))
    assert spy.shapes == [(1, 3), (1, 1)]


@pytest.mark.parametrize(("every", "smaller"), [(0, False), (7, True)])
def test_beside_answers_a_long_prompts_chunks_are_smaller_where_some_are_late(every, smaller):
    machine = Late(SLOW, decode_seconds=2.0**-8)
    engine = practised(machine, clock=machine.clock)
    engine.insert([prompt(1, 3, max_tokens=10**6)])
    usual, machine.every = machine.widths(engine, prompt(2, 1000))[5], every
    for n in range(3, 6):
        machine.widths(engine, prompt(n, 1000))
    assert (machine.widths(engine, prompt(6, 1000))[5] < 0.8 * usual) == smaller


def test_an_answer_of_one_token_takes_no_more_than_that():
    spy = Spy()
    engine = practised(spy)
    spy.shapes.clear()
    steps_to_first(engine, *engine.insert([prompt(7, 4, max_tokens=1)]))
    assert not len(engine)
    assert spy.shapes == [(1, 3), (1, 1)]


def test_nor_does_it_wait_for_many():
    spy = Spy()
    engine = practised(spy)
    engine.insert([prompt(n, 3500) for n in range(40)])
    engine.step()
    assert steps_to_first(engine, *engine.insert([prompt(7, 4)])) <= 3


def test_every_other_chunk_is_a_long_ones():
    spy = Spy()
    engine = practised(spy)
    (long,) = engine.insert([prompt(1, 3000, max_tokens=1)])
    first: list[int] = []
    for n in range(40):
        engine.insert([prompt(n, 40, max_tokens=1)])
        first += [token.uid for token in engine.step().tokens]
    assert long in first[:12]


def test_each_sequence_is_said_to_start_once_when_its_prefill_begins(model):
    from mlxd.core.footprint import PREFILL_ROWS
    from mlxd.worker.mlx_engine import MlxEngine
    from mlxd.worker.serial import SerialEngine

    for make, together in ((MlxEngine, PREFILL_ROWS), (SerialEngine, 1)):
        engine: Engine = make(model, [])
        uids = engine.insert([prompt(n, 3 + n % 5, max_tokens=5) for n in range(12)])
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
