"""Draws reproduce, penalties do what they say, and nothing raises."""

from __future__ import annotations

from typing import Any

import pytest

from mlxd.core.request import Sampling

pytestmark = pytest.mark.mlx


@pytest.fixture
def mx() -> Any:
    import mlx.core

    return mlx.core


@pytest.fixture
def logits(mx) -> Any:
    return mx.random.normal((1, 64), key=mx.random.key(1)) * 3


def tokens_of(sampling: Sampling, logits: Any, count: int = 40) -> list[int]:
    from mlxd.worker.sampling import Guard, sampler_of

    guard = Guard()
    sampler = sampler_of(sampling, guard, vocabulary=64)
    tokens: list[Any] = [sampler(logits).item() for _ in range(count)]
    assert guard.error is None
    return tokens


def processed(sampling: Sampling, tokens: list[int], logits: Any, prompt: int = 0) -> list[float]:
    import mlx.core as mx

    from mlxd.worker.sampling import Guard, processors_of

    guard = Guard()
    logits = mx.array(logits)
    for process in processors_of(sampling, guard, prompt_tokens=prompt):
        logits = process(mx.array(tokens), logits)
    assert guard.error is None
    return [round(value, 4) for value in logits[0].tolist()]


def test_greedy_requests_share_one_sampler_and_have_no_processors():
    from mlxd.worker.sampling import Guard, processors_of, sampler_of

    quiet = Sampling(temperature=0.0, repeat_penalty=1.0, repeat_last_n=64, presence_penalty=0.0)
    samplers = {sampler_of(quiet, Guard(), vocabulary=64) for _ in range(3)}
    assert len(samplers) == 1
    assert processors_of(quiet, Guard(), prompt_tokens=3) == []


def test_a_seed_reproduces_and_another_does_not(logits):
    a = tokens_of(Sampling(temperature=1.0, seed=1), logits)
    assert a == tokens_of(Sampling(temperature=1.0, seed=1), logits)
    assert a != tokens_of(Sampling(temperature=1.0, seed=2), logits)
    assert a != tokens_of(Sampling(temperature=1.0), logits)


def test_a_draw_can_be_resumed_at_its_nth_token(logits):
    from mlxd.worker.sampling import Draw

    whole = Draw(seed=3, temperature=1.0)
    tokens = [whole(logits).item() for _ in range(10)]
    rest = Draw(seed=3, temperature=1.0, drawn=6)
    assert [rest(logits).item() for _ in range(4)] == tokens[6:]


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(temperature=1.5, seed=1, top_k=3), 3),
        (Sampling(temperature=9.0, seed=1, top_k=1), 1),
        (Sampling(temperature=9.0, seed=1, top_p=0.0), 1),
        (Sampling(temperature=9.0, seed=1, min_p=1.0), 1),
        (Sampling(temperature=1e-300, seed=1), 1),
    ],
)
def test_only_the_likeliest_are_drawn(mx, logits, sampling, kept):
    best = set(mx.argsort(-logits, axis=-1)[0, :kept].tolist())
    drawn = set(tokens_of(sampling, logits, 200))
    assert drawn == best


def test_top_p_keeps_the_smallest_set_that_reaches_it(mx):
    logits = mx.log(mx.array([[0.5, 0.3, 0.15, 0.05]]))
    assert set(tokens_of(Sampling(temperature=1.0, seed=1, top_p=0.79), logits, 200)) == {0, 1}
    assert set(tokens_of(Sampling(temperature=1.0, seed=1, top_p=0.81), logits, 400)) == {0, 1, 2}


def test_min_p_is_relative_to_the_likeliest(mx):
    logits = mx.log(mx.array([[0.5, 0.3, 0.15, 0.05]]))
    assert set(tokens_of(Sampling(temperature=1.0, seed=1, min_p=0.5), logits, 200)) == {0, 1}


def test_draws_follow_the_probabilities(mx):
    logits = mx.log(mx.array([[0.5, 0.3, 0.15, 0.05]]))
    drawn = tokens_of(Sampling(temperature=1.0, seed=1), logits, 2000)
    assert abs(drawn.count(0) / 2000 - 0.5) < 0.05
    assert abs(drawn.count(3) / 2000 - 0.05) < 0.02


ROW = [[2.0, -2.0, 4.0, 1.0]]


def test_repeat_penalty_divides_what_is_above_zero_and_multiplies_what_is_below():
    assert processed(Sampling(repeat_penalty=2.0), [0, 1, 1], ROW, 3) == [1.0, -4.0, 4.0, 1.0]


def test_repeat_last_n_is_a_window_over_prompt_and_answer():
    sampling = Sampling(repeat_penalty=2.0, repeat_last_n=2)
    assert processed(sampling, [0, 2, 3], ROW, 2) == [2.0, -2.0, 2.0, 0.5]
    everything = Sampling(repeat_penalty=2.0, repeat_last_n=-1)
    assert processed(everything, [0, 2, 3] * 90, ROW, 2) == [1.0, -2.0, 2.0, 0.5]
    assert processed(Sampling(repeat_penalty=2.0, repeat_last_n=0), [0], ROW, 0) == ROW[0]


def test_presence_and_frequency_look_at_what_was_generated():
    presence = Sampling(presence_penalty=0.5)
    frequency = Sampling(frequency_penalty=0.5)
    assert processed(presence, [0, 2, 2], ROW, 1) == [2.0, -2.0, 3.5, 1.0]
    assert processed(frequency, [0, 2, 2], ROW, 1) == [2.0, -2.0, 3.0, 1.0]
    assert processed(presence, [0, 2], ROW, 2) == ROW[0]


def test_logit_bias_is_added():
    assert processed(Sampling(logit_bias=((1, 5.0), (3, -1.0))), [0], ROW) == [2.0, 3.0, 4.0, 0.0]


def test_a_failing_sampler_or_processor_is_recorded_and_not_raised(mx, logits):
    from mlxd.worker.sampling import Guard

    def fail(*_: Any) -> Any:
        raise RuntimeError("first")

    guard = Guard()
    assert guard.processor(fail)(mx.array([1]), logits) is logits
    assert guard.sampler(fail)(logits).item() == mx.argmax(logits).item()
    assert str(guard.error) == "first"
