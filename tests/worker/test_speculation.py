"""With drafts an answer has the tokens that it has without, whoever drafts."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from mlxd.worker.engine import Engine, Prompt
from tests.support.long import short
from tests.support.model_maker import HYBRID, MOE, SLIDING, Shape
from tests.worker.conftest import MakeModel

pytestmark = pytest.mark.mlx

FULL = Shape(spread=3.0)
LAYOUTS = {
    "full": FULL,
    "sliding": replace(SLIDING, spread=3.0),
    "moe": replace(MOE, spread=3.0),
    "half": replace(FULL, dtype="bfloat16"),
}
Load = Callable[[Shape], Any]
Said = dict[int, list[tuple[int, str | None, list[float] | None]]]


@pytest.fixture(scope="module")
def load_model(model_of: MakeModel) -> Load:
    from mlxd.worker.loading import load, prepare_mlx

    prepare_mlx()
    return lambda shape: load(model_of(shape)).model


def disturbed(model: Any, by: float) -> Any:
    """It agrees with what it was often, and not always."""
    import mlx.core as mx
    from mlx.utils import tree_flatten, tree_unflatten

    key = mx.random.key(7)
    changed = []
    for name, value in tree_flatten(model.parameters()):
        key, draw = mx.random.split(key)
        noise = mx.random.normal(value.shape, key=draw) * by * mx.std(value)
        changed.append((name, (value + noise).astype(value.dtype)))
    model.update(tree_unflatten(changed))
    return model


def drafter(load_model: Load, model: Any, shape: Shape, kind: str) -> Any:
    if kind == "itself":
        return model
    if kind == "another":
        return load_model(replace(FULL, layers=1, hidden=32, heads=2, kv_heads=1))
    return disturbed(load_model(shape), 0.02)


def engine_with(model: Any, draft: Any, depth: int | None, ends: list[int]) -> Engine:
    from mlxd.worker.drafter import Drafter
    from mlxd.worker.mlx_engine import MlxEngine
    from mlxd.worker.speculation import Speculation

    speculation = None if draft is None else Speculation(Drafter(draft, 512), depth=depth)
    return MlxEngine(model, ends, speculation=speculation)


class Even:
    """Allows tokens of the other parity than the last one's: it must be told each token, once."""

    def __init__(self) -> None:
        self._odd = 0

    def __call__(self, tokens: Any, logits: Any) -> Any:
        from mlxd.worker.masks import masked

        return masked(logits, [self])

    def take(self, token: int) -> None:
        assert token % 2 == self._odd
        self._odd = 1 - self._odd

    def fill(self, row: Any) -> None:
        row[:] = 0x55555555 if self._odd == 0 else -0x55555556


def prompts(seed: int, count: int) -> list[Callable[[], Prompt]]:
    """Each made anew for each engine: samplers and constraints have a state."""
    from mlxd.core.request import Sampling
    from mlxd.worker.sampling import Guard, processors_of, sampler_of

    dice = random.Random(seed)

    def one() -> Callable[[], Prompt]:
        tokens = [dice.randrange(2, 500) for _ in range(dice.choice((1, 7, 20, 90)))]
        sampling = Sampling(
            temperature=dice.choice((0.0, 0.0, 0.3, 1.0)),
            seed=dice.randrange(99),
            top_k=dice.choice((None, 5)),
            top_p=dice.choice((None, 0.9)),
            repeat_penalty=dice.choice((None, None, 1.3)),
            frequency_penalty=dice.choice((None, None, 0.5)),
            logit_bias=dice.choice((None, None, ((5, 2.0),))),
        )
        most, scored = dice.choice((1, 2, 9, 40)), dice.random() < 0.5
        constrained = dice.random() < 0.25

        def make() -> Prompt:
            guard = Guard()
            processors = processors_of(sampling, guard, prompt_tokens=len(tokens))
            sampler = sampler_of(sampling, guard, vocabulary=512)
            constraint = Even() if constrained else None
            return Prompt(list(tokens), most, sampler, tuple(processors), constraint, scored)

        return make

    return [one() for _ in range(count)]


def assert_same(said: Said, wanted: Said) -> None:
    """Whoever comes when something was said joins another batch with drafts than without, and
    there the last bits of a log-probability are others.
    """
    assert said.keys() == wanted.keys()
    for uid, tokens in wanted.items():
        assert [token[:2] for token in said[uid]] == [token[:2] for token in tokens]
        for token, other in zip(said[uid], tokens, strict=True):
            assert (token[2] is None) == (other[2] is None)
            assert (token[2] or []) == pytest.approx(other[2] or [], rel=1e-4, abs=1e-4)


def run(engine: Engine, making: list[Callable[[], Prompt]], when: list[int]) -> Said:
    """Insert each when so many tokens were said since the last was; what each said."""
    said: Said = {}
    waiting, since = list(making), 10**6
    gaps = list(when)
    while waiting or len(engine):
        while waiting and (since >= gaps[0] or not len(engine)):
            engine.insert([waiting.pop(0)()])
            gaps.pop(0)
            since = 0
        for token in engine.step().tokens:
            row = token.logprobs
            scores = None if row is None else row[:8].tolist()
            said.setdefault(token.uid, []).append((token.token, token.finish_reason, scores))
            since += 1
    return said


@pytest.mark.parametrize(
    ("layout", "kind"),
    short(
        product(("full", "sliding", "moe", "half"), ("itself", "another", "disturbed")),
        *(("full", "itself"), ("full", "disturbed"), ("sliding", "disturbed")),
        *(("moe", "itself"), ("half", "another")),
    ),
)
def test_drafts_change_no_token(load_model: Load, layout: str, kind: str) -> None:
    shape = LAYOUTS[layout]
    model = load_model(shape)
    draft = drafter(load_model, model, shape, kind)
    making = prompts(hash_of(layout + kind), 6)
    when = [random.Random(layout).choice((0, 5, 30)) for _ in making]
    wanted = run(engine_with(model, None, None, [3]), making, when)
    said = run(engine_with(model, draft, 4, [3]), making, when)
    assert_same(said, wanted)


def test_one_that_is_left_alone_behind_its_first_token_says_it_once(load_model: Load) -> None:
    shape = LAYOUTS["full"]
    model = load_model(shape)
    making: list[Callable[[], Prompt]] = [partial(greedy_prompt, 7, most) for most in (1, 9)]
    wanted = run(engine_with(model, None, None, [3]), making, [0, 0])
    draft = drafter(load_model, model, shape, "itself")
    assert_same(run(engine_with(model, draft, 4, [3]), making, [0, 0]), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_drafts_change_no_token_whatever_comes_when(
    load_model: Load, layout: str, seed: int
) -> None:
    shape = LAYOUTS[layout]
    model = load_model(shape)
    making = prompts(seed, 16)
    when = [random.Random(seed).choice((0, 3, 10, 50)) for _ in making]
    wanted = run(engine_with(model, None, None, [3, 11]), making, when)
    for kind in ("itself", "another", "disturbed"):
        draft = drafter(load_model, model, shape, kind)
        for depth in (None, 2, 16):
            said = run(engine_with(model, draft, depth, [3, 11]), making, when)
            assert_same(said, wanted)


def hash_of(words: str) -> int:
    return sum(map(ord, words))


def greedy_prompt(length: int, most: int) -> Prompt:
    from mlxd.worker.sampling import greedy

    return Prompt([(i * 11) % 500 + 2 for i in range(length)], most, greedy)


def drafts_of(engine: Engine, prompt: Prompt) -> tuple[int, int, int]:
    """Steps, drafted and accepted tokens of one answer."""
    engine.insert([prompt])
    steps = drafted = accepted = 0
    while len(engine):
        step = engine.step()
        steps += bool(step.tokens)
        drafted += sum(drafts.drafted for drafts in step.drafts)
        accepted += sum(drafts.accepted for drafts in step.drafts)
    return steps, drafted, accepted


def test_a_model_that_drafts_for_itself_is_always_right(load_model: Load) -> None:
    model = load_model(FULL)
    steps, drafted, accepted = drafts_of(engine_with(model, model, 4, []), greedy_prompt(9, 50))
    assert drafted == accepted
    assert steps <= 11


class Timed:
    """A model that takes so long for a pass, and so long for each of its tokens."""

    def __init__(self, model: Any, clock: list[float], seconds: float, token: float) -> None:
        self._model, self._clock = model, clock
        self._seconds, self._token = seconds, token

    def __call__(self, tokens: Any, **named: Any) -> Any:
        self._clock[0] += self._seconds + self._token * tokens.shape[1]
        return self._model(tokens, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def timed_engine(model: Any, draft: Any) -> Engine:
    """A draft takes a tenth of a step, and a token more in that little."""
    from mlxd.worker.drafter import Drafter
    from mlxd.worker.mlx_engine import MlxEngine
    from mlxd.worker.speculation import Speculation

    now = [0.0]
    drafter = Drafter(Timed(draft, now, 0.1, 0.0), 512)
    speculation = Speculation(drafter, clock=lambda: now[0])
    return MlxEngine(Timed(model, now, 1.0, 0.01), [], speculation=speculation)


def test_one_that_always_errs_is_found_out(load_model: Load) -> None:
    model, other = load_model(FULL), drafter(load_model, None, FULL, "another")
    steps, drafted, accepted = drafts_of(timed_engine(model, other), greedy_prompt(9, 200))
    assert accepted <= 4
    assert drafted <= 50
    assert steps >= 196


def test_one_that_is_always_right_drafts_ever_more(load_model: Load) -> None:
    model = load_model(FULL)
    steps, drafted, accepted = drafts_of(timed_engine(model, model), greedy_prompt(9, 200))
    assert drafted == accepted
    assert steps < 30


def test_a_sampled_answer_takes_the_drafts_chances(load_model: Load) -> None:
    from mlxd.core.request import Sampling
    from mlxd.worker.sampling import Guard, sampler_of

    model = load_model(FULL)
    sampler = sampler_of(Sampling(temperature=1.0, seed=5), Guard(), vocabulary=512)
    prompt = replace(greedy_prompt(9, 50), sampler=sampler)
    _, drafted, accepted = drafts_of(engine_with(model, model, 4, []), prompt)
    assert drafted == accepted > 0


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


def test_a_long_prompt_is_read_by_the_drafter_beside_the_answer(load_model: Load) -> None:
    model, spy = load_model(FULL), Spy(load_model(FULL))
    engine = engine_with(model, spy, 4, [])
    engine.insert([greedy_prompt(600, 30)])
    first = next(step for step in iter(engine.step, None) if step.tokens)
    assert len(spy.shapes) <= 1, "the first token waits for no drafter"
    assert not first.drafts
    while len(engine):
        engine.step()
    assert max(width for _, width in spy.shapes) <= 512
    assert spy.shapes[-1] in ((1, 1), (1, 2))


def test_a_second_sequence_ends_the_drafts_and_its_end_lets_them_go_on(load_model: Load) -> None:
    model = load_model(FULL)
    engine = engine_with(model, model, 4, [])
    engine.insert([greedy_prompt(9, 120)])
    while not engine.step().drafts:
        pass
    engine.insert([greedy_prompt(5, 20)])
    both = False
    while len(engine) == 2:
        step = engine.step()
        both = both or len({token.uid for token in step.tokens}) == 2
        assert not (both and step.drafts and len(engine) == 2)
    assert both
    assert any(engine.step().drafts for _ in range(4))


@pytest.mark.parametrize("when", [0, 1, 3])
def test_a_cancelled_sequence_leaves_nothing_with_the_drafter(load_model: Load, when: int) -> None:
    model = load_model(FULL)
    engine = engine_with(model, model, 4, [])
    [uid] = engine.insert([greedy_prompt(9, 120)])
    for _ in range(when):
        engine.step()
    engine.remove([uid])
    assert len(engine) == 0
    wanted = run(engine_with(model, None, None, []), [lambda: greedy_prompt(30, 20)], [0])
    said = run(engine, [lambda: greedy_prompt(30, 20)], [0])
    assert list(said.values()) == list(wanted.values())


def test_an_end_token_in_the_middle_of_a_draft_is_the_last(load_model: Load) -> None:
    model = load_model(FULL)
    [whole] = run(engine_with(model, None, None, []), [lambda: greedy_prompt(9, 40)], [0]).values()
    tokens = [token for token, _, _ in whole]
    for end in dict.fromkeys(tokens[3:20]):
        engine = engine_with(model, model, 5, [end])
        engine.insert([greedy_prompt(9, 40)])
        said = [token for step in steps_of(engine) for token in step.tokens]
        assert [token.token for token in said] == tokens[: tokens.index(end) + 1]
        assert [token.finish_reason for token in said[:-1]] == [None] * (len(said) - 1)
        last: Any = said[-1]
        assert last.finish_reason == "stop"
        assert last.all_tokens == greedy_prompt(9, 40).tokens + tokens[: len(said)]
        assert last.prompt_cache[0].offset == len(last.all_tokens)


def test_a_token_that_the_drafter_does_not_know_is_not_shown_to_it(load_model: Load) -> None:
    """It would be read from beyond its tables."""
    from mlxd.worker.drafter import Drafter
    from mlxd.worker.mlx_engine import MlxEngine
    from mlxd.worker.speculation import Speculation

    shown: list[int] = []

    class Small:
        def __call__(self, tokens: Any, **named: Any) -> Any:
            shown.extend(tokens.flatten().tolist())
            return model(tokens, **named)

        def __getattr__(self, name: str) -> Any:
            return getattr(model, name)

    model = load_model(FULL)
    alone = MlxEngine(model, [])
    prompt = replace(greedy_prompt(9, 60), tokens=[5] * 9)
    alone.insert([prompt])
    wanted = [token.token for step in steps_of(alone) for token in step.tokens]
    assert max(wanted) >= 300
    engine = MlxEngine(model, [], speculation=Speculation(Drafter(Small(), 300), depth=4))
    engine.insert([prompt])
    assert [token.token for step in steps_of(engine) for token in step.tokens] == wanted
    assert max(shown) < 300


def steps_of(engine: Engine) -> list[Any]:
    steps = []
    while len(engine):
        steps.append(engine.step())
    return steps


def test_a_window_that_is_full_is_drafted_for_no_more(load_model: Load) -> None:
    """What a window has let go does not come back."""
    model = load_model(LAYOUTS["sliding"])
    _, drafted, accepted = drafts_of(engine_with(model, model, 4, []), greedy_prompt(9, 80))
    assert 0 < drafted == accepted < 32


@pytest.mark.parametrize(
    ("shape", "draft", "words"),
    [
        (FULL, FULL, ""),
        (FULL, HYBRID, "caches of the model that was to draft cannot be trimmed"),
        (HYBRID, FULL, "its caches cannot be trimmed"),
        (FULL, replace(FULL, markers=("<think>",)), "has other tokens"),
    ],
)
def test_who_can_draft_for_whom(
    model_of: MakeModel, shape: Shape, draft: Shape, words: str
) -> None:
    from mlxd.worker.drafting import drafting_of
    from mlxd.worker.loading import load, prepare_mlx

    prepare_mlx()
    drafting = drafting_of(model_of(draft), load(model_of(shape)))
    assert words in drafting.refused
    assert bool(drafting.refused) == bool(words) == (drafting.model is None)


def test_a_model_that_does_not_load_drafts_for_nobody(model_of: MakeModel, tmp_path: Path) -> None:
    from mlxd.worker.drafting import drafting_of
    from mlxd.worker.loading import load, prepare_mlx

    prepare_mlx()
    drafting = drafting_of(tmp_path / "nowhere", load(model_of(FULL)))
    assert drafting.model is None
    assert str(tmp_path) not in drafting.refused
