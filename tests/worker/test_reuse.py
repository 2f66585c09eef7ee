"""What was read once is not read again: the engine with a store of beginnings."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from mlxd.worker.engine import Prompt, Reuse
from tests.support.long import short
from tests.support.model_maker import HYBRID, MOE, SLIDING, Shape
from tests.support.prefixes import List
from tests.worker.conftest import MakeModel

pytestmark = pytest.mark.mlx

RECURRENT = Shape(
    spread=3.0,
    model_type="mamba2",
    extra={
        "num_heads": 4,
        "intermediate_size": 64,
        "state_size": 16,
        "layer_norm_epsilon": 1e-5,
        "conv_kernel": 4,
        "n_groups": 1,
        "expand": 1,
        "use_bias": False,
        "use_conv_bias": True,
        "time_step_limit": [0.0, 100.0],
        "time_step_rank": "auto",
    },
)
SHAPES = {
    "full": Shape(spread=3.0),
    "sliding": replace(SLIDING, spread=3.0),
    "hybrid": replace(HYBRID, spread=3.0),
    "moe": replace(MOE, spread=3.0),
    "recurrent": RECURRENT,
    "rotating": replace(SLIDING, spread=3.0, extra=SLIDING.extra | {"sliding_window": 8}),
}  # fmt: skip
TRIMMABLE = ("full", "moe")
ModelOf = Callable[[str], Any]


@pytest.fixture(scope="module")
def loaded(model_of: MakeModel) -> ModelOf:
    from mlxd.worker.loading import load, prepare_mlx

    prepare_mlx()
    made: dict[str, Any] = {}

    def loaded(name: str) -> Any:
        if name not in made:
            made[name] = load(model_of(SHAPES[name])).model
        return made[name]

    return loaded


def tokens_of(n: int, length: int) -> list[int]:
    return [(n * 37 + i * (11 + n)) % 500 + 2 for i in range(length)]


def prompt(*tokens: list[int], max_tokens: int = 8, **more: Any) -> Prompt:
    from mlxd.worker.sampling import greedy

    return Prompt([token for part in tokens for token in part], max_tokens, greedy, **more)


class Counting:
    """A model that counts the tokens it reads in prompts, padding included."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.read = 0

    def __call__(self, tokens: Any, cache: Any = None) -> Any:
        rows, width = tokens.shape
        self.read += rows * width if width > 1 else 0
        return self._model(tokens, cache=cache)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class Talk:
    """An engine, and what came out of it."""

    def __init__(self, model: Any, prefixes: Any = None, **more: Any) -> None:
        from mlxd.worker.mlx_engine import MlxEngine

        self.model = Counting(model)
        self.engine = MlxEngine(self.model, [], prefixes=prefixes, **more)
        self.answers: dict[int, list[int]] = {}
        self.reused: list[Reuse] = []

    def ask(self, *prompts: Prompt) -> list[int]:
        uids = self.engine.insert(prompts)
        self.answers.update({uid: [] for uid in uids})
        return uids

    def step(self) -> None:
        step = self.engine.step()
        self.reused += step.reused
        for token in step.tokens:
            self.answers[token.uid].append(token.token)

    def say(self, *prompts: Prompt) -> list[list[int]]:
        """Their answers."""
        uids = self.ask(*prompts)
        while len(self.engine):
            self.step()
        return [self.answers[uid] for uid in uids]


def slow_clock(seconds: float = 0.05) -> Callable[[], float]:
    """Of a machine on which everything takes long: chunks are as small as can be."""
    return count(0.0, seconds).__next__


@pytest.fixture(params=short(SHAPES, "full", "sliding", "rotating", "hybrid"))
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    return request.param


@pytest.mark.parametrize("name", ["full", "hybrid"])
def test_the_next_turn_begins_where_the_answer_ended(loaded: ModelOf, name: str) -> None:
    first, more = prompt(tokens_of(1, 90)), tokens_of(3, 40)
    kept = List(trimmable=name in TRIMMABLE)
    talk = Talk(loaded(name), kept)
    (answer,) = talk.say(first)
    second = prompt(first.tokens, answer, more)
    assert talk.say(second) == Talk(loaded(name)).say(second)
    assert [(one.uid, one.cached) for one in talk.reused] == [(0, 0), (1, 98)]
    assert kept.kinds == [("prompt", 89), ("answer", 98), ("prompt", 137), ("answer", 146)]
    assert talk.model.read == 89 + 39


def test_the_same_prompt_again_is_its_last_token(loaded: ModelOf) -> None:
    talk = Talk(loaded("full"), List(trimmable=True))
    asked = prompt(tokens_of(1, 90))
    first, read = talk.say(asked), talk.model.read
    assert talk.say(asked) == first
    assert talk.reused[1].cached == 89
    assert talk.model.read == read


def test_a_short_prompt_is_not_kept_for_its_own_sake(loaded: ModelOf) -> None:
    kept = List(trimmable=True)
    Talk(loaded("full"), kept).say(prompt(tokens_of(1, 20), max_tokens=5))
    assert kept.kinds == []


@pytest.mark.parametrize("name", ["full", "sliding"])
def test_a_prompt_that_is_given_up_leaves_what_was_read(loaded: ModelOf, name: str) -> None:
    kept = List(trimmable=name in TRIMMABLE)
    talk = Talk(loaded(name), kept, clock=slow_clock())
    asked = prompt(tokens_of(1, 600))
    (uid,) = talk.ask(asked)
    talk.step()
    talk.engine.remove([uid])
    assert kept.kinds == []
    (uid,) = talk.ask(asked)
    while talk.model.read < 64 + 300:
        talk.step()
    talk.engine.remove([uid])
    assert [kind for kind, _ in kept.kinds] == ["partial"]
    length = kept.kinds[0][1]
    before = talk.model.read
    assert talk.say(asked) == Talk(loaded(name)).say(asked)
    assert talk.model.read - before == 599 - length


def test_an_answer_that_is_ended_from_outside_is_kept(loaded: ModelOf) -> None:
    kept = List(trimmable=True)
    talk = Talk(loaded("full"), kept)
    (uid, other) = talk.ask(prompt(tokens_of(1, 90), max_tokens=50), prompt(tokens_of(2, 70)))
    while len(talk.answers[uid]) < 7:
        talk.step()
    talk.engine.remove([uid])
    assert ("answer", 97) in kept.kinds
    assert kept.kept[-1].prompt.tokens == [*tokens_of(1, 90), *talk.answers[uid]]
    assert talk.say() == []
    assert talk.answers[other] == Talk(loaded("full")).say(prompt(tokens_of(2, 70)))[0]


@pytest.mark.parametrize("name", ["full", "sliding", "hybrid"])
@pytest.mark.parametrize("length", [1, 90])
def test_who_leaves_before_the_first_token_leaves_the_prompt_as_it_was_kept(
    loaded: ModelOf, name: str, length: int
) -> None:
    """If it is one token long, nothing was read of it, and its caches are empty."""
    kept = List(trimmable=name in TRIMMABLE)
    talk = Talk(loaded(name), kept)
    [uid] = talk.ask(prompt(tokens_of(1, length)))
    while uid in talk.engine._unread:
        talk.step()
    talk.engine.remove([uid])
    assert kept.kinds == ([("prompt", 89)] if length > 1 else [])


def test_caches_that_cannot_be_trimmed_are_kept_where_turns_end(loaded: ModelOf) -> None:
    system, user = tokens_of(1, 50), tokens_of(2, 60)
    asked = prompt(system, user, tokens_of(3, 30), boundaries=(50, 60, 110))
    other = prompt(system, user, tokens_of(4, 25))
    for name in ("sliding", "full"):
        kept = List(trimmable=name in TRIMMABLE)
        talk = Talk(loaded(name), kept)
        answers = talk.say(asked) + talk.say(other)
        ends = [("system", 50), ("turn", 110)] if name == "sliding" else []
        assert kept.kinds[: len(ends) + 1] == [*ends, ("prompt", 139)]
        assert talk.reused[1].cached == 110
        assert answers == [Talk(loaded(name)).say(one)[0] for one in (asked, other)]


def test_the_prefix_of_eight_new_requests_is_read_once(loaded: ModelOf) -> None:
    prefix = tokens_of(1, 700)
    asked = [prompt(prefix, tokens_of(n + 2, 20 + n), max_tokens=3) for n in range(8)]
    for name in ("full", "hybrid"):
        kept = List(trimmable=name in TRIMMABLE)
        talk = Talk(loaded(name), kept)
        answers = talk.say(*asked)
        assert [one.cached for one in talk.reused] == [0, *[700] * 7]
        assert talk.model.read < 700 + 8 * 30
        assert answers[5:6] == Talk(loaded(name)).say(asked[5])


def test_who_waits_goes_on_when_it_is_given_up(loaded: ModelOf) -> None:
    prefix = tokens_of(1, 500)
    asked = [prompt(prefix, tokens_of(n + 2, 20), max_tokens=3) for n in range(3)]
    talk = Talk(loaded("full"), List(trimmable=True), clock=slow_clock())
    uids = talk.ask(*asked)
    while talk.model.read < 150:
        talk.step()
    talk.engine.remove(uids[:1])
    talk.say()
    assert talk.answers[2] == Talk(loaded("full")).say(asked[2])[0]
    assert talk.model.read < 500 + 3 * 20 + 64


def test_who_comes_late_gets_what_is_read_by_then(loaded: ModelOf) -> None:
    """Behind a long prompt that shares a part of it, and is long past that."""
    prefix = tokens_of(1, 200)
    talk = Talk(loaded("full"), List(trimmable=True), clock=slow_clock())
    talk.ask(prompt(prefix, tokens_of(2, 900), max_tokens=3))
    while talk.model.read < 400:
        talk.step()
    late = prompt(prefix, tokens_of(3, 20), max_tokens=3)
    talk.say(late)
    assert talk.reused[1].cached == 200
    assert talk.answers[1] == Talk(loaded("full")).say(late)[0]


def test_a_store_that_keeps_nothing_keeps_nobody_waiting(loaded: ModelOf) -> None:
    asked = [prompt(tokens_of(1, 200), tokens_of(n + 2, 9), max_tokens=3) for n in range(5)]
    talk = Talk(loaded("full"), List(trimmable=True, forgets=True))
    talk.engine.insert([])
    answers = talk.say(*asked)
    assert [one.cached for one in talk.reused] == [0] * 5
    assert answers == Talk(loaded("full")).say(*asked)


@pytest.mark.parametrize("trimmable", short([True, False], True))
def test_for_a_store_without_room_nobody_waits_and_nothing_is_copied(
    loaded: ModelOf, trimmable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlxd.worker import prefiller
    from mlxd.worker.prefix.store import Store

    monkeypatch.delattr(prefiller, "_extracted")
    prefix = tokens_of(1, 200)
    asked = [prompt(prefix, tokens_of(n + 2, 9), max_tokens=3, boundaries=(150,)) for n in range(4)]
    talk = Talk(loaded("full"), Store(trimmable=trimmable), clock=lambda: 0.0)
    talk.say(prompt(tokens_of(9, 3000), max_tokens=1))
    started: list[int] = []
    uids = talk.ask(*asked)
    while not started:
        started += talk.engine.step().started
    assert started == uids, "all are one chunk"
    talk.say()


def test_of_a_crowd_only_those_who_may_be_next_are_compared(
    loaded: ModelOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlxd.worker import waits

    compared = []

    def alike(one: Any, two: Any) -> int:
        compared.append((one, two))
        return real(one, two)

    real = waits._alike
    monkeypatch.setattr(waits, "_alike", alike)
    prefix = tokens_of(1, 200)
    talk = Talk(loaded("full"), List(trimmable=True))
    talk.ask(*[prompt(prefix, tokens_of(n + 2, 5)) for n in range(200)])
    talk.step()
    assert 0 < len(compared) <= 32 * 31 / 2


def test_where_nothing_may_be_kept_nobody_looks_copies_or_waits(
    loaded: ModelOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlxd.worker.prefix.store import Store

    store = Store(trimmable=True, limit=0)
    for name in ("find", "reach", "missed", "keep"):
        monkeypatch.setattr(store, name, None)
    talk = Talk(loaded("full"), store)
    alike = [prompt(tokens_of(1, 140), tokens_of(n, 20), max_tokens=40) for n in range(2, 6)]
    uids = talk.ask(*alike)
    while len(talk.answers[uids[0]]) < 2:
        talk.step()
    talk.engine.remove(uids[:1])
    while len(talk.engine):
        talk.step()
    assert talk.reused == []


def test_of_another_owners_prompt_only_the_systems_turn_is_found(loaded: ModelOf) -> None:
    system, user = tokens_of(1, 150), tokens_of(2, 150)
    parts: dict[str, Any] = {"boundaries": (150,), "shared": 150}
    for name in ("full", "sliding"):
        talk = Talk(loaded(name), List(trimmable=name in TRIMMABLE), clock=lambda: 0.0)
        talk.say(
            prompt(system, user, tokens_of(3, 9), owner="a", **parts),
            prompt(system, user, tokens_of(4, 9), owner="b", **parts),
            prompt(system, user, tokens_of(5, 9), owner="a", **parts),
        )
        assert sorted(one.cached for one in talk.reused) == [0, 150, 300]


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_tokens_are_the_same_however_they_come_about(loaded: ModelOf, name: str, seed: int) -> None:
    """Prompts that begin alike come and go; with chunks of any size, overtaking and reuse."""
    chance = random.Random(f"{name}{seed}")
    beginnings = [tokens_of(n, length) for n, length in enumerate((140, 170, 60))]
    asked: list[Prompt] = []
    for n in range(14):
        base = chance.choice([*beginnings, [], *[one.tokens for one in asked[-3:]]])
        cut = chance.choice((len(base), chance.randint(0, len(base))))
        tail = tokens_of(n + 5, chance.choice((1, 2, 9, 30, 120)))
        ends = tuple(sorted({cut, 140} & set(range(1, cut + len(tail)))))
        asked.append(prompt(base[:cut], tail, max_tokens=chance.randint(1, 12), boundaries=ends))
    kept = List(trimmable=name in TRIMMABLE)
    clock = (chance.choice((0.0, 0.001, 0.04)) for _ in count())
    now = iter_sums(clock)
    talk = Talk(loaded(name), kept, clock=now.__next__)
    given_up: set[int] = set()
    for one in asked:
        talk.ask(one)
        for _ in range(chance.choice((0, 0, 1, 4))):
            talk.step()
        if chance.random() < 0.15:
            given_up.add(chance.randrange(len(talk.answers)))
            talk.engine.remove(list(given_up))
    talk.say()
    assert sum(kept.found) > 100
    for uid, one in enumerate(asked):
        alone = Talk(loaded(name)).say(replace(one, boundaries=()))[0]
        answer = talk.answers[uid]
        assert answer == alone[: len(answer)] if uid in given_up else answer == alone, uid


def iter_sums(steps: Iterator[float]) -> Iterator[float]:
    now = 0.0
    for step in steps:
        now += step
        yield now


def test_a_first_token_does_not_wait_for_its_prompt_to_be_kept(loaded: ModelOf) -> None:
    kept = List(trimmable=True)
    talk = Talk(loaded("full"), kept)
    (uid,) = talk.ask(prompt(tokens_of(1, 50)))
    while not talk.answers[uid]:
        talk.step()
    assert kept.kinds == []
    talk.step()
    assert kept.kinds == [("prompt", 49)]


def test_a_prompt_is_kept_before_its_answer(loaded: ModelOf) -> None:
    kept = List(trimmable=True)
    Talk(loaded("full"), kept).say(prompt(tokens_of(1, 50), max_tokens=1))
    assert kept.kinds == [("prompt", 49), ("answer", 50)]
