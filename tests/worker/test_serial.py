"""What does not batch takes turns: nobody waits for a whole answer, or for a long prompt."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from mlxd.core.footprint import PREFILL_APART, Footprint, LayerGroup
from mlxd.worker.engine import Prompt
from tests.support.model_maker import Shape
from tests.worker.conftest import MakeModel

pytestmark = pytest.mark.mlx


@pytest.fixture(scope="module")
def loaded(model_of: MakeModel) -> Any:
    from mlxd.worker.loading import load, prepare_mlx

    prepare_mlx()
    return load(model_of(Shape(hidden=128, heads=2, kv_heads=1, spread=3.0)), kv_bits=8)


@pytest.fixture(autouse=True)
def ends_here() -> Iterator[None]:
    """What a test leaves open MLX wants to end in this thread, whoever collects it."""
    yield
    gc.collect()


def engine_of(loaded: Any) -> Any:
    from mlxd.worker.serial import SerialEngine

    return SerialEngine(loaded.model, [], loaded.kv)


def prompt(n: int, length: int, most: int = 20, **more: Any) -> Prompt:
    from mlxd.worker.sampling import greedy

    return Prompt([(n * 37 + i * 11) % 500 + 2 for i in range(length)], most, greedy, **more)


def said(engine: Any) -> dict[int, list[int]]:
    tokens: dict[int, list[int]] = {}
    while len(engine):
        for token in engine.step().tokens:
            tokens.setdefault(token.uid, []).append(token.token)
    return tokens


def test_two_long_answers_go_on_side_by_side(loaded: Any) -> None:
    engine = engine_of(loaded)
    uids = engine.insert([prompt(1, 9, 60), prompt(2, 9, 60)])
    counts = dict.fromkeys(uids, 0)
    while len(engine):
        for token in engine.step().tokens:
            counts[token.uid] += 1
        assert abs(counts[uids[0]] - counts[uids[1]]) <= 1
    assert set(counts.values()) == {60}


def test_a_short_prompt_behind_a_long_one_starts_soon(loaded: Any) -> None:
    engine = engine_of(loaded)
    long, short = engine.insert([prompt(1, 3 * PREFILL_APART + 9, 4), prompt(2, 9, 4)])
    first: dict[int, int] = {}
    step = 0
    while len(first) < 2:
        step += 1
        for token in engine.step().tokens:
            first.setdefault(token.uid, step)
    assert first[short] <= 4
    assert first[long] <= 9


def test_a_long_prompt_is_read_however_many_short_ones_come(loaded: Any) -> None:
    engine = engine_of(loaded)
    [long] = engine.insert([prompt(1, 2 * PREFILL_APART + 9, 2)])
    for n in range(12):
        engine.insert([prompt(n, 9, 2), prompt(n, 8, 2)])
        if any(token.uid == long for token in engine.step().tokens):
            return
    raise AssertionError("only short ones were read")


def test_a_long_prompt_gets_a_place_when_one_is_free(loaded: Any) -> None:
    from mlxd.worker.serial import OPEN_SEQUENCES

    engine = engine_of(loaded)
    engine.insert([prompt(n, 5, 3 + n) for n in range(OPEN_SEQUENCES)])
    for _ in range(OPEN_SEQUENCES):
        engine.step()
    [long] = engine.insert([prompt(1, PREFILL_APART + 40, 2)])
    for n in range(30):
        engine.insert([prompt(n, 9, 3)])
        if any(token.uid == long for token in engine.step().tokens):
            return
    raise AssertionError("only short ones got a place")


def test_no_more_caches_are_held_than_were_counted(loaded: Any) -> None:
    from mlxd.worker.serial import OPEN_SEQUENCES

    engine = engine_of(loaded)
    engine.insert([prompt(n, 5, 40) for n in range(OPEN_SEQUENCES + 3)])
    started: list[int] = []
    most = 0
    while len(engine):
        step = engine.step()
        started += step.started
        most = max(most, len(step.tokens))
    assert most == OPEN_SEQUENCES
    assert started == sorted(started)


def test_in_turns_each_says_what_it_says_alone(loaded: Any) -> None:
    prompts = [prompt(n, length) for n, length in enumerate([5, 60, 3, 700, 1, 17, 1100])]
    alone: list[list[int]] = []
    for one in prompts:
        engine = engine_of(loaded)
        engine.insert([one])
        alone += said(engine).values()
    engine = engine_of(loaded)
    uids = engine.insert(prompts)
    together = said(engine)
    assert [together[uid] for uid in uids] == alone


def test_a_cut_answer_goes_on_beside_others(loaded: Any) -> None:
    engine = engine_of(loaded)
    engine.insert([prompt(3, 40, 30)])
    [whole] = said(engine).values()
    begun = prompt(3, 40, 30)
    rest = replace(begun, tokens=begun.tokens + whole[:11], max_tokens=19, answered=11)
    engine = engine_of(loaded)
    other, cut = engine.insert([prompt(1, 700, 25), rest])
    assert said(engine)[cut] == whole[11:]
    assert other != cut


@pytest.mark.parametrize("when", [0, 1, 3])
def test_a_removed_one_leaves_the_others_alone(loaded: Any, when: int) -> None:
    engine = engine_of(loaded)
    uids = engine.insert([prompt(1, 600, 30), prompt(2, 9, 30), prompt(4, 5, 30)])
    for _ in range(when):
        engine.step()
    engine.remove([uids[0], uids[2]])
    assert len(engine) == 1
    while len(engine):
        assert all(token.uid == uids[1] for token in engine.step().tokens)


def test_each_counts_at_its_own_length() -> None:
    from mlxd.worker.apart import Apart

    footprint = Footprint(1000, (LayerGroup(2, 10),), work_bytes=1)
    apart = Apart.of(footprint)
    alone = footprint.peak_bytes([256])
    assert apart.peak_bytes([256]) == alone
    assert apart.cache_bytes([2560, 256]) == 20 * (2560 + 256)
    assert apart.peak_bytes([2560, 256]) == footprint.peak_bytes([2560]) + 20 * 256
    reading = footprint.peak_bytes([], [5120], PREFILL_APART)
    assert apart.peak_bytes([256, 256], [5120]) == reading + 2 * 20 * 256
