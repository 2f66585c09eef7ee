"""What is held against requests that workers died of."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mlxd.control.suspects import KEPT, Case, Suspects
from mlxd.core.models import ModelCard
from mlxd.core.request import GenerationRequest, Message, Sampling, ToolChoice
from mlxd.policy.schema.supervision import Quarantine

TWO = Quarantine.model_validate({"kills": 2, "for": "1h"})
ONE = Quarantine.model_validate({"kills": 1, "for": "1h"})


def card(name="m"):
    return ModelCard(name, f"/{name}", 1, "0" * 64, 0.0, "llama", 1, "f32", 512)


GREEDY = Sampling(temperature=0.0)


def case(client="c", model="m", sampling=GREEDY, **request):
    asked = {"messages": (Message("user", "hello"),), **request}
    return Case(client, card(model), GenerationRequest(model=model, **asked), sampling)


@pytest.mark.parametrize(
    "other",
    [
        case("other"),
        case(model="other"),
        case(sampling=Sampling(temperature=0.5)),
        case(messages=(Message("user", "hello!"),)),
        case(messages=None, text="hello"),
        case(messages=None, token_ids=(1, 2)),
        case(tools=({"type": "function"},)),
        case(format="json"),
        case(stop=("x",)),
        case(max_tokens=9),
        case(think=True),
        case(template_options={"a": 1}),
        case(want="embedding"),
        case(suffix="x"),
        case(context=(1, 2)),
        case(pattern="x+"),
        case(tool_choice=ToolChoice(required=True)),
        case(template="{{ messages }}"),
        case(echo=True),
        case(min_tokens=3),
    ],
)
def test_another_request_is_another_case(other):
    assert other.key != case().key


def test_how_an_answer_is_delivered_makes_no_other_case():
    assert case(stream=False, keep_alive=5.0, logprobs=3).key == case().key
    half = case(messages=(Message("user", "\ud800"),))
    assert half.key != case().key, "what no message could carry has a key too"


def test_whatever_ran_is_a_suspect_and_not_refused_before_it_was_alone():
    suspects = Suspects()
    assert suspects.find(case(), 0.0) is None
    for worker in (1, 2, 3):
        found = suspects.accuse(case(), worker, TWO, 0.0, alone=False)
        assert (found.kills, found.quarantined) == (worker, False)
    assert suspects.accuse(case(), 4, TWO, 0.0, alone=True).quarantined


def test_the_second_death_while_alone_leaves_no_doubt():
    suspects = Suspects()
    assert not suspects.accuse(case(), 1, TWO, 0.0, alone=True).quarantined
    assert suspects.accuse(case(), 2, TWO, 1.0, alone=True).quarantined
    assert Suspects().accuse(case(), 1, ONE, 0.0, alone=True).quarantined


def test_equal_requests_that_died_with_one_worker_count_it_once():
    suspects = Suspects()
    suspects.accuse(case(), 1, ONE, 0.0, alone=False)
    assert suspects.accuse(case(), 1, ONE, 0.0, alone=False).kills == 1


def test_one_that_was_cleared_is_none_any_more():
    suspects = Suspects()
    suspects.accuse(case(), 1, TWO, 0.0, alone=True)
    suspects.clear(case())
    suspects.clear(case())
    assert suspects.find(case(), 0.0) is None
    assert not suspects.accuse(case(), 2, TWO, 0.0, alone=True).quarantined


def test_time_forgets():
    suspects = Suspects()
    suspects.accuse(case(), 1, ONE, 100.0, alone=True)
    assert suspects.quarantined(3699.0)
    assert suspects.find(case(), 3699.0) is not None
    assert not suspects.quarantined(3700.0)
    assert suspects.find(case(), 3700.0) is None


def test_a_model_is_reset_by_itself():
    suspects = Suspects()
    suspects.accuse(case(), 1, ONE, 0.0, alone=True)
    suspects.accuse(case("suspect"), 2, ONE, 0.0, alone=False)
    suspects.accuse(case(model="other"), 3, ONE, 0.0, alone=True)
    assert suspects.reset(card()) == 1
    assert [one.model for one in suspects.quarantined(0.0)] == ["other"]
    assert suspects.find(case("suspect"), 0.0) is None
    assert suspects.reset(replace(card(), path="/elsewhere")) == 0


def test_no_more_than_so_many_are_kept_and_those_in_quarantine_the_longest():
    suspects = Suspects()
    suspects.accuse(case("first"), 1, ONE, 0.0, alone=True)
    for number in range(KEPT + 5):
        suspects.accuse(case(f"c{number}"), number + 2, TWO, 0.0, alone=False)
    assert len(suspects._all) == KEPT
    assert suspects.find(case("first"), 0.0) is not None
    assert suspects.find(case("c0"), 0.0) is None
    for number in range(KEPT + 5):
        suspects.accuse(case(f"q{number}"), number + 2, ONE, 0.0, alone=True)
    assert len(suspects._all) == KEPT
    assert suspects.find(case("first"), 0.0) is None, "the oldest goes when all are in quarantine"
