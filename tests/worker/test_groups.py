"""Sequences in several batches: the same tokens, less padding."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlxd.core.footprint import Footprint, LayerGroup
from mlxd.core.grouping import UNBOUNDED
from mlxd.worker.engine import Prompt
from mlxd.worker.groups import Groups
from mlxd.worker.loading import load, prepare_mlx
from mlxd.worker.mlx_engine import MlxEngine
from mlxd.worker.pace import Pace
from mlxd.worker.sampling import Draw, greedy
from tests.support.long import short
from tests.support.model_maker import HYBRID, MOE, SLIDING, Shape
from tests.worker.conftest import MakeModel

pytestmark = pytest.mark.mlx

RECURRENT = Shape(
    model_type="mamba2",
    extra={
        "num_heads": 4, "expand": 1, "state_size": 16, "layer_norm_epsilon": 1e-5, "conv_kernel": 4,
        "n_groups": 1, "use_bias": False, "use_conv_bias": True, "time_step_rank": 4,
        "time_step_limit": [0.0, 1e9], "intermediate_size": 64,
    },
)  # fmt: skip
SEVERAL = Shape(
    model_type="falcon_h1",
    extra={
        "attention_bias": False, "mamba_d_ssm": 64, "mamba_d_state": 16, "mamba_d_conv": 4,
        "mamba_d_head": 16, "mamba_n_heads": 4, "mamba_n_groups": 1, "mamba_expand": 1,
        "mamba_chunk_size": 64, "mamba_conv_bias": True, "mamba_proj_bias": False,
        "mamba_norm_before_gate": True, "mamba_rms_norm": False, "mamba_use_mlp": True,
        "mlp_bias": False, "projectors_bias": False, "initializer_range": 0.02,
        "embedding_multiplier": 1.0, "lm_head_multiplier": 1.0, "mlp_expansion_factor": 2,
        "mlp_multipliers": [1.0, 1.0], "ssm_in_multiplier": 1.0, "ssm_out_multiplier": 1.0,
        "ssm_multipliers": [1.0] * 5, "key_multiplier": 1.0, "attention_in_multiplier": 1.0,
        "attention_out_multiplier": 1.0, "bos_token_id": 1, "pad_token_id": 0,
        "num_logits_to_keep": 1, "time_step_floor": 1e-4, "time_step_max": 0.1,
        "time_step_min": 0.001, "time_step_rank": "auto", "use_cache": True,
        "architectures": ["FalconH1ForCausalLM"], "transformers_version": "4",
        "attention_dropout": 0.0, "hidden_act": "silu",
    },
)  # fmt: skip
"""Two caches in each layer."""
LAYOUTS = {
    "full": Shape(),
    "sliding": SLIDING,
    "wrapped": replace(SLIDING, extra={**SLIDING.extra, "sliding_window": 8}),
    "hybrid": HYBRID,
    "moe": MOE,
    "recurrent": RECURRENT,
    "several": SEVERAL,
}


def costs(pass_bytes: int) -> Any:
    """Each token takes a byte."""
    return SimpleNamespace(
        pass_bytes=pass_bytes, row_bytes=lambda length: length, read_bytes=lambda length: length
    )


@pytest.fixture(scope="module")
def models(model_of: MakeModel) -> Callable[[str], Any]:
    loaded: dict[str, Any] = {}

    def model(layout: str) -> Any:
        if layout not in loaded:
            prepare_mlx()
            loaded[layout] = load(model_of(replace(LAYOUTS[layout], spread=3.0))).model
        return loaded[layout]

    return model


class Even:
    """A constraint: tokens of even number; notes what it was told."""

    def __init__(self) -> None:
        self.taken: list[int] = []

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        odd = mx.arange(logits.shape[-1]) % 2 == 1
        return mx.where(odd, -mx.inf, logits)

    def take(self, token: int) -> None:
        self.taken.append(token)

    def fill(self, row: Any) -> None:
        row[:] = np.int32(0x55555555)


def no_repeat(tokens: mx.array, logits: mx.array) -> mx.array:
    """Not the last two again."""
    return mx.where((mx.arange(logits.shape[-1])[:, None] == tokens[-2:]).any(-1), -mx.inf, logits)


def drawn(seed: int) -> list[Prompt]:
    """Prompts of all sorts, the same for the same seed."""
    draw = random.Random(seed)
    prompts = []
    for n in range(7):
        length = draw.choice([draw.randint(1, 20), draw.randint(40, 120), draw.randint(250, 300)])
        tokens = [(n * 37 + i * 11 + seed) % 500 + 2 for i in range(length)]
        cold = Draw(seed=n, temperature=0.7, top_k=0, top_p=1.0, min_p=0.0, drawn=0)
        prompts.append(
            Prompt(
                tokens,
                draw.randint(1, 40),
                greedy if draw.random() < 0.6 else cold,
                processors=(no_repeat,) if draw.random() < 0.4 else (),
                constraint=Even() if draw.random() < 0.3 else None,
                scored=draw.random() < 0.3,
            )
        )
    return prompts


def run(engine: MlxEngine, prompts: list[Prompt], seed: int) -> dict[int, list[Any]]:
    """Tokens and likelihoods of each; they come and are given up at any step."""
    draw = random.Random(seed)
    waiting, found, step = list(prompts), dict[int, list[Any]](), 0
    while waiting or len(engine):
        if waiting and step % 3 == 0:
            engine.insert([waiting.pop(0)])
        if draw.random() < 0.02:
            engine.remove([draw.randrange(len(prompts))])
        for token in engine.step().tokens:
            told = found.setdefault(token.uid, [])
            told.append(token.token)
            if prompts[token.uid].scored:
                told.append(pytest.approx(token.logprobs[token.token].item(), abs=2e-3))
        step += 1
    return found


def restless(seed: int) -> Callable[[], int]:
    """Room that changes at any time, so that rows are moved at any time."""
    draw = random.Random(seed)
    return lambda: draw.choice([UNBOUNDED] * 6 + [0, 300])


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many groups there are after each step."""
    found: list[int] = []
    step = Groups.step

    def stepped(self: Groups) -> list[Any]:
        responses = step(self)
        found.append(len(self.batches))
        return responses

    with monkeypatch.context() as patch:
        patch.setattr(Groups, "step", stepped)
        yield found


def timeless() -> float:
    """What is read in a step goes by no clock: who is given up has as many tokens as before."""
    return 0.0


def check(model: Any, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = run(MlxEngine(model, [], clock=timeless), prompts := drawn(seed), seed)
    again = drawn(seed)
    with counted(monkeypatch) as groups:
        apart = Groups(costs(20), restless(seed))
        engine = MlxEngine(model, [], batches=apart, clock=timeless)
        assert run(engine, again, seed) == wanted
    assert max(groups) > 1
    for uid, (before, after) in enumerate(zip(prompts, again, strict=True)):
        if isinstance(before.constraint, Even) and isinstance(after.constraint, Even):
            told = [before.constraint.taken, after.constraint.taken]
            if not after.scored:
                told.append(wanted.get(uid, []))
            least = min(map(len, told))
            assert [tokens[:least] for tokens in told] == [told[0][:least]] * len(told)
            assert max(map(len, told)) <= least + 1, "the last may not be told, or not be taken"
    assert not len(apart)
    assert not apart.batches


@pytest.mark.parametrize(
    "layout", short(LAYOUTS, "full", "sliding", "wrapped", "hybrid", "several")
)
def test_tokens_are_the_same_in_any_groups(
    models: Callable[[str], Any], layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(models(layout), 1, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", range(2, 10))
def test_tokens_are_the_same_in_any_groups_whatever_comes(
    models: Callable[[str], Any], layout: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(models(layout), seed, monkeypatch)


@pytest.fixture
def model(models: Callable[[str], Any]) -> Any:
    return models("full")


def prompt(length: int, max_tokens: int = 1000) -> Prompt:
    return Prompt([1 + n % 500 for n in range(length)], max_tokens, greedy)


def decoding(model: Any, groups: Groups, *lengths: int) -> MlxEngine:
    """All are read, and decode."""
    engine = MlxEngine(model, [], batches=groups, clock=lambda: 0.0)
    for length in lengths:
        engine.insert([prompt(length)])
        before = len(groups)
        while len(groups) == before:
            engine.step()
    return engine


def shapes(groups: Groups) -> list[list[int]]:
    """The uids of each batch."""
    return sorted(sorted(batch.uids) for batch in groups.batches)


def nbytes(groups: Groups) -> int:
    return sum(cache.nbytes for batch in groups.batches for cache in batch.prompt_cache)


def test_a_long_one_is_apart_and_takes_what_it_takes_alone(model: Any) -> None:
    groups = Groups(costs(500))
    decoding(model, groups, 900, 5, 10, 7)
    assert shapes(groups) == [[0], [1, 2, 3]]
    token = 512
    assert nbytes(groups) <= token * (1156 + 3 * 280)


def test_those_that_are_much_alike_are_together(model: Any) -> None:
    groups = Groups(costs(500))
    decoding(model, groups, 300, 5, 200)
    assert shapes(groups) == [[0, 1, 2]]


def test_when_the_long_one_leaves_its_memory_is_given_back(model: Any) -> None:
    groups = Groups(costs(500))
    engine = decoding(model, groups, 1500, 5, 10)
    before = mx.get_active_memory()
    engine.remove([0])
    engine.step()
    mx.synchronize()
    assert shapes(groups) == [[1, 2]]
    assert before - mx.get_active_memory() >= 512 * 1500


def test_when_the_longest_of_a_group_leaves_others_may_come_to_it(model: Any) -> None:
    groups = Groups(costs(300))
    engine = decoding(model, groups, 600, 500, 20)
    assert shapes(groups) == [[0, 1], [2]]
    engine.remove([0, 99])
    engine.step()
    assert shapes(groups) == [[1], [2]]
    engine.insert([prompt(200)])
    while len(groups) < 3:
        engine.step()
    assert shapes(groups) == [[1], [2, 3]]
    engine.remove([1])
    assert shapes(groups) == [[2, 3]]


def test_want_of_room_tells_them_apart_at_the_next_step(model: Any) -> None:
    room = [UNBOUNDED]
    groups = Groups(costs(10_000), lambda: room[0])
    decoding(model, groups, 700, 5, 10)
    assert shapes(groups) == [[0, 1, 2]]
    padded = nbytes(groups)
    room[0] = 1000
    tokens = groups.step()
    assert shapes(groups) == [[0], [1, 2]]
    assert sorted(token.uid for token in tokens) == [0, 1, 2]
    assert nbytes(groups) < 0.65 * padded
    room[0] = UNBOUNDED
    for _ in range(256):
        groups.step()
    assert shapes(groups) == [[0, 1, 2]], "looked at again when some have grown a step"


def test_to_tell_them_apart_takes_no_more_than_a_layer(models: Callable[[str], Any]) -> None:
    model = models("full")
    room = [UNBOUNDED]
    groups = Groups(costs(10_000), lambda: room[0])
    decoding(model, groups, 1000, *[10] * 7)
    groups.step()
    mx.synchronize()
    held = nbytes(groups)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    room[0] = 0
    groups.step()
    mx.synchronize()
    assert mx.get_peak_memory() - before < held / 3
    assert mx.get_active_memory() < before - held / 2


@pytest.fixture
def did(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What MLX was asked for, from now on."""
    did: list[str] = []
    for name in ("async_eval", "eval"):
        real = getattr(mx, name)

        def noted(*arrays: Any, name: str = name, real: Any = real) -> None:
            did.append(name)
            real(*arrays)

        monkeypatch.setattr(mx, name, noted)
    return did


def test_all_groups_begin_before_any_is_waited_for(model: Any, did: list[str]) -> None:
    groups = Groups(costs(100))
    decoding(model, groups, 700, 5)
    assert len(groups.batches) == 2
    groups.step()
    groups.step()
    did.clear()
    groups.step()
    assert did == ["async_eval", "async_eval", "eval", "eval"]


def test_first_tokens_wait_for_no_others(model: Any, did: list[str]) -> None:
    groups = Groups()
    decoding(model, groups, 5)
    did.clear()
    assert len(groups.step()) == 1
    assert did.count("async_eval") == 1, "the second ones were begun"
    assert not groups.under_way


def test_with_a_first_token_everybodys_are_told(model: Any, did: list[str]) -> None:
    groups = Groups()
    engine = decoding(model, groups, 5)
    for _ in range(3):
        engine.step()
    engine.insert([prompt(7)])
    engine.step()
    assert shapes(groups) == [[0], [1]], "they share nothing while one of them is under way"
    did.clear()
    assert sorted(token.uid for token in groups.step()) == [0, 1]
    assert did.count("async_eval") == 1, "of the new one: the other's token was there"
    assert not groups.under_way
    groups.step()
    assert shapes(groups) == [[0, 1]]


def test_who_joins_has_the_first_token_of_the_others_pass(model: Any, did: list[str]) -> None:
    groups = Groups()
    engine = decoding(model, groups, 5, 6)
    engine.step()
    for uids in ([0, 1, 2], [0, 1, 2, 3]):
        engine.insert([prompt(7 + len(uids))])
        engine.step()
        assert shapes(groups) == [uids]
        assert groups.batches[0]._next_tokens.dtype == mx.uint32
        did.clear()
        assert sorted(token.uid for token in engine.step().tokens) == uids
        assert did.count("async_eval") == 1


def test_for_one_that_left_before_its_first_token_nobody_is_told_early(model: Any) -> None:
    groups = Groups()
    engine = decoding(model, groups, 5)
    engine.step()
    engine.insert([prompt(7)])
    engine.step()
    engine.remove([1])
    engine.step()
    assert groups.under_way


class Noting(Pace):
    """Notes what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.beside: list[bool] = []
        self.steps = 0

    def prefilled(self, *args: Any, **more: Any) -> None:
        self.beside.append(more["beside"])

    def decoded(self, seconds: float) -> None:
        self.steps += 1


def test_a_chunk_beside_nothing_is_all_that_its_time_was_for(model: Any) -> None:
    engine = decoding(model, Groups(), 5)
    engine._pace = pace = Noting()
    for steps in (1, 2):
        for _ in range(steps):
            engine.step()
        engine.insert([prompt(7)])
        engine.step()
    assert pace.beside == [False, True]


def test_what_a_step_takes_is_learned_from_those_that_begin_one_pass(model: Any) -> None:
    engine = decoding(model, Groups(), 5)
    engine._pace = pace = Noting()
    learned = []
    for _ in range(4):
        engine.step()
        learned.append(pace.steps)
    assert learned == [0, 0, 1, 2], "the first is behind a chunk, the second begins two"


def test_what_is_told_early_is_in_the_caches_after_the_next_step(model: Any) -> None:
    groups = Groups()
    engine = decoding(model, groups, 5)
    [first] = engine.step().tokens
    told = [*prompt(5).tokens, first.token]
    assert holds(groups, 0) == (5, told[:5])
    engine.insert([prompt(6)])
    while len(groups) == 1:
        assert not engine.step().tokens
    assert holds(groups, 0) == (5, told[:5])
    assert holds(groups, 1) is None, "it has said nothing"
    engine.step()
    assert holds(groups, 0) == (6, told)
    assert holds(groups, 1) == (6, prompt(6).tokens)


def test_nobodys_leaving_has_a_first_token_come_later(model: Any, did: list[str]) -> None:
    """It is looked at who shares a batch, while a new one stands beside what is under way."""
    groups = Groups()
    engine = decoding(model, groups, 5, 6)
    for _ in range(3):
        engine.step()
    engine.insert([prompt(7)])
    engine.step()
    engine.remove([1])
    assert shapes(groups) == [[0], [2]]
    did.clear()
    assert sorted(token.uid for token in engine.step().tokens) == [0, 2]
    assert did.count("async_eval") == 1
    assert not groups.under_way


def test_nor_has_a_want_of_memory(model: Any, did: list[str]) -> None:
    room = [UNBOUNDED]
    groups = Groups(costs(10_000), lambda: room[0])
    engine = decoding(model, groups, 700, 5)
    for _ in range(3):
        engine.step()
    engine.insert([prompt(7)])
    engine.step()
    room[0] = 1000
    did.clear()
    assert sorted(token.uid for token in engine.step().tokens) == [0, 1, 2]
    assert did.count("async_eval") == 1
    engine.step()
    assert shapes(groups) == [[0], [1, 2]]


def test_who_shares_a_batch_is_looked_at_before_caches_grow(model: Any) -> None:
    """A step behind what was told early begins two passes."""
    read, held = list[int](), list[int]()
    sizes = Footprint(100, (LayerGroup(2, 256),))

    class Asked(Footprint):
        def read_bytes(self, length: int) -> int:
            read.append(length)
            return sizes.read_bytes(length)

        def row_bytes(self, length: int) -> int:
            held.append(length)
            return sizes.row_bytes(length)

    def asked() -> list[int]:
        read.clear()
        held.clear()
        groups.step()
        return [*read, *held]

    groups = Groups(Asked(100, (LayerGroup(2, 256),)))
    decoding(model, groups, 255)
    groups.step()
    assert asked() == [257, 257]
    groups.step()
    for _ in range(254):
        assert asked() == []
    assert asked() == [513, 513]


def holds(groups: Groups, uid: int) -> tuple[int, list[int]] | None:
    if (found := groups.extract(uid)) is None:
        return None
    caches, tokens = found
    return caches[0].offset, tokens


def _noting(into: list[Any]) -> Callable[[Any], None]:
    def note(batch: Any) -> None:
        into.append(batch)

    return note


@pytest.mark.parametrize("fresh", [True, False])
def test_those_that_are_constrained_begin_last(
    model: Any, monkeypatch: pytest.MonkeyPatch, fresh: bool
) -> None:
    groups = Groups(costs(100))
    decoding(model, groups, 700, 5)
    if not fresh:
        groups.step()
    long, short = sorted(groups.batches, key=lambda batch: batch.uids)
    begun: list[Any] = []
    monkeypatch.setattr(type(long), "catch_up" if fresh else "begin", _noting(begun))
    monkeypatch.setattr(type(long), "early" if fresh else "next", lambda batch: [])
    groups.constraints[0] = Even()
    groups.step()
    groups.constraints[1] = groups.constraints.pop(0)
    groups.step()
    assert begun == [short, long, long, short]


def test_a_sequence_is_found_and_taken_out_of_any_group(model: Any) -> None:
    groups = Groups(costs(100))
    decoding(model, groups, 700, 5).step()
    assert groups.extract(2) is None
    found = groups.extract(1)
    assert found is not None
    caches, tokens = found
    assert tokens[:5] == prompt(5).tokens
    assert caches[0].offset == len(tokens)


def test_without_a_footprint_all_are_together(model: Any) -> None:
    groups = Groups()
    decoding(model, groups, 900, 5)
    assert shapes(groups) == [[0, 1]]


def test_by_a_real_footprint_bytes_are_near_what_each_takes_alone(model: Any) -> None:
    footprint = Footprint(427_264, (LayerGroup(2, 256),))
    groups = Groups(footprint)
    decoding(model, groups, 1500, *[20] * 7)
    assert shapes(groups) == [[0], [1, 2, 3, 4, 5, 6, 7]]
    alone = footprint.cache_bytes([1501]) + 7 * footprint.cache_bytes([100])
    assert nbytes(groups) <= 1.3 * alone
