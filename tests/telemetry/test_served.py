"""What clients got, as metrics."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from mlxd.core.caller import Caller
from mlxd.core.story import Story
from mlxd.telemetry import served
from mlxd.telemetry.served import Served


@dataclass
class World:
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        self.served = Served(self.registry)

    def ended(self, **facts: Any) -> None:
        story = Story("id", "/api/chat", Caller("c"), 1, 0.0, lambda: 9.0, 0.0)
        story.want, story.model, story.leased, story.ended = "answer", "tiny", 1.0, 3.0
        for name, value in facts.items():
            setattr(story, name, value)
        self.served.ended(story)

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"mlxd_{name}", labels)


@pytest.fixture
def world() -> World:
    return World()


def test_an_answer_is_counted_with_its_tokens_and_times(world: World) -> None:
    world.ended(
        first_token=0.3, prompt_tokens=90, cached_tokens=60, completion_tokens=11,
        decode_seconds=0.2,
    )  # fmt: skip
    assert world.value("requests_total", want="answer", code="ok") == 1
    assert world.value("request_seconds_sum", want="answer") == 3.0
    assert world.value("time_to_first_token_seconds_sum", model="tiny") == 0.3
    assert world.value("token_gap_seconds_sum", model="tiny") == pytest.approx(0.02)
    tokens = {k: world.value("tokens_total", model="tiny", kind=k) for k in ("prompt", "cached")}
    assert tokens == {"prompt": 90, "cached": 60}
    assert world.value("tokens_total", model="tiny", kind="completion") == 11


def test_several_answers_to_one_request_have_no_gap_between_them(world: World) -> None:
    world.ended(requests=3, completion_tokens=33, decode_seconds=0.3)
    assert world.value("token_gap_seconds_sum", model="tiny") == pytest.approx(0.01)
    world.ended(requests=3, completion_tokens=3, decode_seconds=0.3)
    assert world.value("token_gap_seconds_count", model="tiny") == 1


def test_who_never_had_the_model_is_counted_and_tells_no_times(world: World) -> None:
    world.ended(leased=None, code="queue_full")
    assert world.value("requests_total", want="answer", code="queue_full") == 1
    assert world.value("request_seconds_count", want="answer") is None
    assert world.value("tokens_total", model="tiny", kind="prompt") is None


def test_a_prompt_that_is_only_counted_takes_no_tokens(world: World) -> None:
    world.ended(want="prompt", prompt_tokens=90)
    assert world.value("requests_total", want="prompt", code="ok") == 1
    assert world.value("tokens_total", model="tiny", kind="prompt") is None


def test_whose_client_left_is_not_counted_as_served(world: World) -> None:
    world.ended(status=499)
    world.ended(status=499, code="deadline")
    assert world.value("requests_total", want="answer", code="left") == 1
    assert world.value("requests_total", want="answer", code="deadline") == 1
    assert world.value("requests_total", want="answer", code="ok") is None


def test_who_got_no_token_tells_no_time_to_it(world: World) -> None:
    world.ended(code="client_gone")
    assert world.value("time_to_first_token_seconds_count", model="tiny") is None
    assert world.value("token_gap_seconds_count", model="tiny") is None


def test_however_many_models_there_are_the_series_are_bounded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "MOST_MODELS", 3)
    for number in range(9):
        world.ended(model=f"m{number}", prompt_tokens=1)
    for number in range(3):
        world.ended(model=f"m{number}", prompt_tokens=1)
        assert world.value("tokens_total", model=f"m{number}", kind="prompt") == 2
    assert world.value("tokens_total", model="other", kind="prompt") == 6
    assert world.value("tokens_total", model="m3", kind="prompt") is None
