"""What is found against what is computed, token by token, over the layouts that caches have."""

from __future__ import annotations

import gc
import random
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.generate import PromptProcessingBatch, generate_step
from mlx_lm.models.cache import make_prompt_cache

from mlxd.worker.engine import Kind, Prompt
from mlxd.worker.prefix import snapshot
from mlxd.worker.prefix.entry import Entry
from mlxd.worker.prefix.store import Store
from mlxd.worker.sampling import greedy
from mlxd.worker.stand_ins import leaves
from tests.support.long import short
from tests.support.model_maker import HYBRID, MOE, SLIDING, Shape
from tests.worker.conftest import MakeModel

pytestmark = pytest.mark.mlx

GEMMA = Shape(
    layers=3,
    model_type="gemma3_text",
    extra={"sliding_window": 300, "sliding_window_pattern": 3, "query_pre_attn_scalar": 16},
)
RECURRENT = Shape(
    model_type="mamba2",
    extra={
        "num_heads": 8, "head_dim": 16, "state_size": 16, "conv_kernel": 4, "n_groups": 1,
        "use_bias": False, "use_conv_bias": True, "layer_norm_epsilon": 1e-5,
        "time_step_limit": [0.0, 1e9], "time_step_rank": 8, "intermediate_size": 128,
    },
)  # fmt: skip
LAYOUTS = {
    "full": Shape(),
    "sliding": GEMMA,
    "wrapped": SLIDING,
    "hybrid": HYBRID,
    "moe": MOE,
    "recurrent": RECURRENT,
}
ANSWER = 6
ROOM = 1 << 30


@pytest.fixture(
    scope="module", params=short(sorted(LAYOUTS), "full", "sliding", "wrapped", "hybrid")
)
def model(request: pytest.FixtureRequest, model_of: MakeModel) -> Any:
    from mlxd.worker.loading import load, prepare_mlx

    prepare_mlx()
    return load(model_of(replace(LAYOUTS[request.param], spread=3.0))).model


def store_of(model: Any, limit: int = ROOM) -> Store:
    caches = make_prompt_cache(model)
    assert snapshot.can_be_kept(caches)
    return Store(trimmable=snapshot.can_be_trimmed(caches), limit=limit)


def prompt_of(tokens: list[int], *boundaries: int, owner: str = "") -> Prompt:
    shared = boundaries[0] if boundaries else 0
    return Prompt(tokens, ANSWER, greedy, boundaries=boundaries, owner=owner, shared=shared)


def alone(model: Any, tokens: list[int]) -> list[int]:
    steps = generate_step(mx.array(tokens), model, max_tokens=ANSWER)
    return [int(token) for token, _ in steps]


@dataclass
class Reader:
    """Reads prompts together, and keeps what an engine would."""

    model: Any
    store: Store
    draw: random.Random
    cached: list[int] = field(default_factory=list)
    """How much was found, prompt by prompt."""

    def answer(self, *prompts: Prompt) -> list[list[int]]:
        rows = [self._read(prompt) for prompt in prompts]
        batch = PromptProcessingBatch(
            self.model,
            list(range(len(prompts))),
            rows,
            tokens=[prompt.tokens[:-1] for prompt in prompts],
            fallback_sampler=greedy,
            max_tokens=[prompt.max_tokens for prompt in prompts],
            samplers=[greedy] * len(prompts),
            logits_processors=[[]] * len(prompts),
        )
        for n, prompt in enumerate(prompts):
            self.store.keep(prompt, len(prompt.tokens) - 1, batch.extract_cache(n), "prompt")
        running = batch.generate([prompt.tokens[-1:] for prompt in prompts])
        answers: dict[int, list[int]] = {n: [] for n in range(len(prompts))}
        while len(running):
            for said in running.next():
                answers[said.uid].append(said.token)
                if said.finish_reason is not None:
                    whole = prompt_of(said.all_tokens, *prompts[said.uid].boundaries)
                    self.store.keep(whole, len(said.all_tokens), said.prompt_cache, "answer")
        return list(answers.values())

    def _read(self, prompt: Prompt) -> list[Any]:
        """All but the last token, in chunks, with a stop at each boundary; or in a batch of one."""
        found = self.store.find(prompt)
        at = found.length if found is not None else 0
        caches = found.caches if found is not None else make_prompt_cache(self.model)
        self.cached.append(at)
        assert snapshot.holds(caches, at)
        end = len(prompt.tokens) - 1
        batch = None
        if self.draw.random() < 0.5:
            batch = PromptProcessingBatch(self.model, [0], [caches], tokens=[[]])
        while at < end:
            stops = [b for b in (*prompt.boundaries, end) if b > at]
            to = min(at + self.draw.choice((1, 7, 50, 500)), *stops, end)
            if batch is not None:
                batch.prompt([prompt.tokens[at:to]])
            else:
                self.model(mx.array([prompt.tokens[at:to]]), cache=caches)
                mx.eval([cache.state for cache in caches])
            at = to
            if at in prompt.boundaries:
                read = caches if batch is None else batch.extract_cache(0)
                kind: Kind = "system" if at == prompt.boundaries[0] else "turn"
                self.store.keep(prompt, at, read, kind)
        return caches if batch is None else batch.extract_cache(0)


def conversations(draw: random.Random, number: int) -> list[Prompt]:
    """Some go on from others, some part from them, some are others once more."""
    system = [draw.randrange(2, 500) for _ in range(draw.choice((40, 200)))]
    told: list[Prompt] = []

    def tokens(most: int) -> list[int]:
        return [draw.randrange(2, 500) for _ in range(draw.randrange(1, most))]

    for _ in range(number):
        before = draw.choice(told).tokens if told else system
        how = draw.randrange(4)
        if how == 0:
            part = [*before, *tokens(90)]
        elif how == 1:
            part = [*before[: draw.randrange(1, len(before))], *tokens(60)]
        elif how == 2:
            part = list(before)
        else:
            part = [*system, *tokens(60)]
        turns = sorted({len(system), len(before)} & set(range(20, len(part))))
        told.append(prompt_of(part, *turns) if part[: len(system)] == system else prompt_of(part))
    return told


def same(one: list[Any], other: list[Any]) -> bool:
    pairs = zip(snapshot.arrays_of(one), snapshot.arrays_of(other), strict=True)
    return all(bool(mx.array_equal(a, b)) for a, b in pairs)


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 9))]
)
def test_answers_are_the_same_whatever_is_found(model: Any, seed: int) -> None:
    draw = random.Random(seed)
    reader = Reader(model, store_of(model, draw.choice((ROOM, 400_000))), draw)
    prompts = conversations(draw, 6)
    while prompts:
        some = [prompts.pop() for _ in range(min(len(prompts), draw.choice((1, 1, 3))))]
        assert reader.answer(*some) == [alone(model, prompt.tokens) for prompt in some]
        assert reader.store.nbytes <= reader.store.limit
    assert any(reader.cached)


def test_a_conversation_goes_on_from_its_last_answer(model: Any) -> None:
    draw = random.Random(5)
    reader = Reader(model, store_of(model), draw)
    first = prompt_of([draw.randrange(2, 500) for _ in range(350)], 100, 300)
    (said,) = reader.answer(first)
    again = prompt_of([*first.tokens, *said, *range(30, 60)], 100, 300)
    assert reader.answer(again) == [alone(model, again.tokens)]
    assert reader.answer(again) == [alone(model, again.tokens)]
    other = prompt_of([*first.tokens[:300], *range(60, 90)], 100, 300)
    assert reader.answer(other) == [alone(model, other.tokens)]
    assert reader.cached == [0, len(first.tokens) + ANSWER, len(again.tokens) - 1, 300]


def test_what_is_kept_stays_as_it_is(model: Any) -> None:
    """Whatever is written to what was found."""
    draw = random.Random(3)
    reader = Reader(model, store_of(model), draw)
    for prompt in conversations(draw, 4):
        reader.answer(prompt)
    before = [(entry, entry.copied()) for entry in reader.store]
    for entry, copied in before:
        kept = {id(array) for array in snapshot.arrays_of(entry.caches)}
        assert not kept & {id(array) for array in snapshot.arrays_of(copied)}
        for room in (0, 5):
            caches = snapshot.given(entry.caches, entry.length)
            model(mx.array([[7] * (1 + room)]), cache=caches)
            model(mx.array([[8]]), cache=caches)
            mx.eval([cache.state for cache in caches])
    for entry, caches in before:
        assert same(entry.copied(), caches)
        fresh = make_prompt_cache(model)
        model(mx.array([entry.tokens]), cache=fresh)
        steps = [model(mx.array([[9]]), cache=each)[0, -1] for each in (entry.copied(), fresh)]
        assert int(mx.argmax(steps[0])) == int(mx.argmax(steps[1]))


def windows(reader: Reader) -> list[tuple[Entry, Any]]:
    each = [(entry, leaf) for entry in reader.store for leaf in leaves(entry.caches)]
    return [(entry, leaf) for entry, leaf in each if hasattr(leaf, "max_size")]


def test_a_store_is_no_larger_than_its_tokens_need(model: Any) -> None:
    """By what MLX counts, not by what the store says."""
    draw = random.Random(4)
    first = prompt_of([draw.randrange(2, 500) for _ in range(400)], 200)
    reader = Reader(model, store_of(model), draw)
    gc.collect()  # what others left would go meanwhile
    mx.eval(mx.zeros(1))
    before = mx.get_active_memory()
    reader.answer(first, prompt_of([*first.tokens[:300], 5, 6, 7], 200))
    mx.synchronize()
    held = mx.get_active_memory() - before
    arrays = sum(
        a.nbytes
        for a in {id(a): a for e in reader.store for a in snapshot.arrays_of(e.caches)}.values()
    )
    assert arrays <= held <= arrays + len(reader.store) * 20_000
    assert arrays <= reader.store.nbytes
    assert all(leaf.keys.shape[-2] == min(e.length, leaf.max_size) for e, leaf in windows(reader))
    reader.store.shrink(0)
    assert len(reader.store) == 0
    assert reader.store.nbytes == 0
    assert mx.get_active_memory() - before < 20_000
