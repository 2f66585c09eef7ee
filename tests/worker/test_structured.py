"""Answers held to schemas and to tool calls, in a batch with others that are free."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from mlxd.core.request import Message, Sampling, ToolChoice
from mlxd.ipc.messages import Call, Ended, Reasoning, Text
from tests.support.model_maker import THINKING, TOOL_TEMPLATE, TOOLS, Shape
from tests.worker.bench import Bench, Heard
from tests.worker.conftest import MakeModel

pytestmark = pytest.mark.mlx

HOT = Sampling(temperature=1.2, seed=5)
ASKED = (Message("user", "server 模型 fox"),)
SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "y"]}, "n": {"type": "integer", "maximum": 99}},
    "required": ["a", "n"],
}


def tool(name: str, **properties: Any) -> Any:
    parameters = {"type": "object", "properties": properties, "required": [*properties]}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS_OFFERED = (
    tool("add", a={"type": "integer", "minimum": 0, "maximum": 9}, b={"$ref": "#/$defs/b"}),
    tool("now"),
    tool("find", text={"type": "string", "maxLength": 6}),
)
TOOLS_OFFERED[0]["function"]["parameters"]["$defs"] = {"b": {"enum": ["</tool_call>", "{"]}}


@pytest.fixture(scope="module")
def bench(model_of: MakeModel) -> Bench:
    return Bench(model_of(Shape(spread=3.0, markers=THINKING + TOOLS, template=TOOL_TEMPLATE)))


def calls_of(heard: Heard) -> list[Call]:
    """All that was said, which is calls and nothing else."""
    assert heard.refused is None
    said = [piece for piece in heard.pieces if not isinstance(piece, Ended)]
    assert all(isinstance(piece, Call) for piece in said), said
    assert heard.ended.reason == "stop"
    return [piece for piece in said if isinstance(piece, Call)]


def check_calls(calls: list[Call], names: tuple[str, ...]) -> None:
    offered = {each["function"]["name"]: each["function"]["parameters"] for each in TOOLS_OFFERED}
    for call in calls:
        assert call.name in names
        Draft202012Validator(offered[call.name]).validate(call.arguments)


def forced(bench: Bench, seed: int, choice: ToolChoice, **more: Any) -> Any:
    return bench.message(
        **{"messages": ASKED, "think": False} | more,
        tools=TOOLS_OFFERED,
        tool_choice=choice,
        sampling=replace(HOT, seed=seed),
        max_tokens=400,
    )


@pytest.mark.parametrize("plain", [False, True])
def test_calls_that_are_forced_are_calls(bench: Bench, plain: bool, monkeypatch: Any) -> None:
    """Between the model's markers; or as plain JSON, where it has others."""
    checks: Any = bench.intake.preparation.checks
    if plain:
        monkeypatch.setattr(checks.grammars, "_markers", None)
    everything = ("add", "now", "find")
    several = ToolChoice(required=True)
    one = ToolChoice(required=True, names=("add",), parallel=False)
    asked = [forced(bench, seed, several) for seed in range(4)]
    asked += [forced(bench, seed, one, stream=seed % 2 == 0) for seed in range(2)]
    heard = bench.run(asked)
    for each in heard[:4]:
        check_calls(calls_of(each), everything)
    assert max(len(calls_of(each)) for each in heard[:4]) > 1
    for each in heard[4:]:
        check_calls(calls_of(each), ("add",))
        assert len(calls_of(each)) == 1


def test_thinking_comes_before_a_forced_call(bench: Bench) -> None:
    end = token_of(bench, "</think>")
    asked = forced(bench, 3, ToolChoice(required=True, parallel=False), think=True)
    sampling = replace(HOT, logit_bias=((end, 7.0),))
    [heard] = bench.run([replace_sampling(asked, sampling)])
    thought, *rest = [piece for piece in heard.pieces if not isinstance(piece, Ended)]
    assert isinstance(thought, Reasoning)
    rest = [piece for piece in rest if not isinstance(piece, Reasoning)]
    assert [type(piece) for piece in rest] == [Call]
    ended = heard.ended
    assert 0 < ended.reasoning_tokens < ended.completion_tokens
    thinking = heard.tokens.index(end) + 1
    assert ended.reasoning_tokens == thinking


def test_an_answer_does_not_end_amid_its_thinking(bench: Bench) -> None:
    """The model would: nothing of what was asked would be there."""
    end = token_of(bench, "</think>")
    sampling = replace(HOT, logit_bias=((0, 50.0), (end, 7.0)))
    [heard] = bench.run(
        [
            bench.message(
                messages=ASKED, think=True, format=SCHEMA, max_tokens=400, sampling=sampling
            )
        ]
    )
    text = "".join(piece.text for piece in heard.pieces if isinstance(piece, Text))
    Draft202012Validator(SCHEMA).validate(json.loads(text))
    assert heard.ended.reasoning_tokens > 1


def replace_sampling(message: Any, sampling: Sampling) -> Any:
    from msgspec import structs

    return structs.replace(message, sampling=sampling)


def token_of(bench: Bench, marker: str) -> int:
    tokenizer: Any = bench.intake.preparation.checks.prompter._tokenizer  # type: ignore[union-attr]
    return int(tokenizer.convert_tokens_to_ids(marker))


def test_those_beside_a_constrained_answer_say_what_they_say_alone(bench: Bench) -> None:
    free: list[dict[str, Any]] = [
        {"text": f"number {n}", "max_tokens": 40, "sampling": replace(HOT, seed=n)}
        for n in range(3)
    ]
    free.append({"text": "greedy", "max_tokens": 40})
    alone = [bench.run([bench.message(**each)])[0].tokens for each in free]
    held = [
        bench.message(text="x", format=SCHEMA, max_tokens=60, sampling=replace(HOT, seed=n))
        for n in range(3)
    ]
    together = bench.run([bench.message(**each) for each in free] + held)
    assert [each.tokens for each in together[:4]] == alone
    for each in together[4:]:
        text = "".join(piece.text for piece in each.pieces if isinstance(piece, Text))
        Draft202012Validator(SCHEMA).validate(json.loads(text))


@pytest.mark.parametrize("call", [False, True])
def test_an_answer_in_a_format_may_be_a_call_instead(bench: Bench, call: bool) -> None:
    """As the model wants it; nothing else is said."""
    liked = {token_of(bench, "<tool_call>"): 40.0 if call else -40.0}
    end = token_of(bench, "</tool_call>")
    sampling = replace(HOT, logit_bias=((end, 5.0), *liked.items()))
    asked = [
        bench.message(
            messages=ASKED, think=False, tools=TOOLS_OFFERED, format=SCHEMA, max_tokens=60,
            sampling=replace(sampling, seed=seed),
        )
        for seed in range(3)
    ]  # fmt: skip
    for heard in bench.run(asked):
        assert heard.refused is None
        text = "".join(piece.text for piece in heard.pieces if isinstance(piece, Text))
        if call:
            assert text.startswith("<tool_call>")
        else:
            Draft202012Validator(SCHEMA).validate(json.loads(text))


@pytest.mark.parametrize("asks", [{"text": "x"}, {"messages": ASKED, "think": False}])
@pytest.mark.parametrize("pattern", [r"(red|green)-\d{2}", " (yes|no)"])
def test_an_answer_matches_its_pattern(bench: Bench, asks: dict[str, Any], pattern: str) -> None:
    asked = [
        bench.message(**asks, pattern=pattern, max_tokens=60, sampling=replace(HOT, seed=n))
        for n in range(4)
    ]
    for heard in bench.run(asked):
        text = "".join(piece.text for piece in heard.pieces if isinstance(piece, Text))
        assert re.fullmatch(pattern, text)
        assert heard.ended.reason == "stop"


def test_markers_in_the_text_of_an_answer_that_is_held_are_text(bench: Bench) -> None:
    said = "<tool_call>{}</tool_call><think>x</think>"
    asked = bench.message(
        messages=ASKED, think=False, tools=TOOLS_OFFERED, format={"const": said}, max_tokens=99
    )
    [heard] = bench.run([asked])
    text = "".join(piece.text for piece in heard.pieces if isinstance(piece, Text))
    assert json.loads(text) == said
    assert heard.ended.malformed_calls == 0


@pytest.mark.parametrize("held", [False, True])
def test_an_answer_does_not_end_before_it_may(bench: Bench, held: bool) -> None:
    """The model would end at once."""
    eager = replace(HOT, logit_bias=((0, 50.0),))
    asked: dict[str, Any] = {"text": "x", "max_tokens": 30, "sampling": eager}
    if held:
        asked["pattern"] = "(ab)*"
    soon, late, never = bench.run(
        [
            bench.message(**asked),
            bench.message(**asked, min_tokens=15),
            bench.message(**asked, ignore_eos=True),
        ]
    )
    assert soon.ended.completion_tokens < 15 <= late.ended.completion_tokens < 30
    assert late.ended.reason == "stop"
    assert never.ended.completion_tokens == 30
    assert never.ended.reason == "length"


def test_a_request_for_one_call_ends_with_its_first(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.worker.test_resume import CALL, recite

    recite(bench, f"I look. {CALL}{CALL} so", monkeypatch)
    asked: dict[str, Any] = {"messages": ASKED, "think": False, "sampling": HOT, "max_tokens": 200}
    several, one = bench.run(
        [
            bench.message(**asked, tools=TOOLS_OFFERED),
            bench.message(**asked, tools=TOOLS_OFFERED, tool_choice=ToolChoice(parallel=False)),
        ]
    )
    assert sum(isinstance(piece, Call) for piece in several.pieces) == 2
    said = [piece for piece in one.pieces if not isinstance(piece, Ended)]
    assert [type(piece) for piece in said if not (isinstance(piece, Text) and not piece.text)][
        -1
    ] is Call
    assert sum(isinstance(piece, Call) for piece in said) == 1
    assert one.ended.reason == "stop"
    assert one.ended.completion_tokens < several.ended.completion_tokens


def test_calls_that_are_none_are_counted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.worker.test_resume import recite

    text = "<tool_call>no</tool_call> and <tool_call>{"
    recite(bench, text, monkeypatch)
    asked: dict[str, Any] = {"messages": ASKED, "think": False, "sampling": HOT, "max_tokens": 200}
    [heard] = bench.run([bench.message(**asked, tools=TOOLS_OFFERED)])
    said = "".join(piece.text for piece in heard.pieces if isinstance(piece, Text))
    assert said == text
    assert heard.ended.malformed_calls == 2


def test_a_grammar_that_cannot_be_followed_ends_its_request_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlxd.worker.constraint import Constrained

    real = Constrained._fill

    def fill(constraint: Constrained, row: Any) -> None:
        if constraint._taken == 3:
            raise OSError("lost")
        real(constraint, row)

    monkeypatch.setattr(Constrained, "_fill", fill)
    free, held = bench.run(
        [
            bench.message(text="x", max_tokens=20),
            bench.message(text="x", format=SCHEMA, max_tokens=60),
        ]
    )
    assert free.ended.completion_tokens == 20
    assert held.refused is not None
    assert held.refused.code == "invalid_request"
