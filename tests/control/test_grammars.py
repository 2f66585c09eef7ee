"""Grammars are judged before their requests are admitted, outside the daemon."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mlxd.control import grammars as grammars_module
from mlxd.control.grammars import Grammars
from mlxd.core.clock import SystemClock
from mlxd.core.errors import InvalidRequest
from mlxd.core.request import GenerationRequest, ToolChoice


@pytest.fixture
async def grammars() -> AsyncIterator[Grammars]:
    judge = Grammars(SystemClock())
    yield judge
    await judge.close()


def asked(**more: Any) -> GenerationRequest:
    return GenerationRequest(model="m", text="x", **more)


def tool(parameters: Any) -> Any:
    return {"type": "function", "function": {"name": "f", "parameters": parameters}}


async def test_the_validators_words_are_told(grammars: Grammars) -> None:
    refused: list[tuple[GenerationRequest, str, str]] = [
        (asked(format={"type": "no such"}), "format", "no such"),
        (asked(format={"$ref": "#/missing"}), "format", "missing"),
        (asked(format={"type": "string", "pattern": "(?=x)"}), "format", "look-around"),
        (asked(format={"$ref": "#"}), "format", "nothing can ever match it"),
        (asked(pattern="(a"), "pattern", "unclosed"),
        (asked(tool_choice=ToolChoice(required=True)), "tools", "none is offered"),
        (
            asked(tools=(tool({"type": 5}),), tool_choice=ToolChoice(required=True)),
            "tools",
            "object",
        ),
        (
            asked(
                tools=(tool({"properties": {"a": {"type": "x"}}}),),
                tool_choice=ToolChoice(required=True),
            ),
            "tools",
            "type",
        ),
    ]
    for request, param, words in refused:
        with pytest.raises(InvalidRequest, match=words) as caught:
            await grammars.check(request)
        assert caught.value.param == param
        assert caught.value.message.startswith(f"{param}: ")
        assert "\n" not in caught.value.message


async def test_what_can_be_followed_passes(grammars: Grammars) -> None:
    await grammars.check(asked(format="json"))
    await grammars.check(asked(format={"type": "object", "properties": {"a": {"type": "string"}}}))
    await grammars.check(asked(pattern="^[a-z]{3}$"))
    choice = ToolChoice(required=True, names=("f",))
    await grammars.check(asked(tools=(tool({"type": "object"}), tool({})), tool_choice=choice))


async def test_only_what_holds_an_answer_is_judged(grammars: Grammars) -> None:
    await grammars.check(asked())
    await grammars.check(asked(tools=(tool({"type": 5}),)))
    await grammars.check(asked(want="prompt", format={"type": 5}))
    assert grammars._process is None


async def test_a_verdict_is_remembered(grammars: Grammars) -> None:
    good, bad = asked(format={"type": "string"}), asked(format={"type": 5})
    await grammars.check(good)
    with pytest.raises(InvalidRequest):
        await grammars.check(bad)
    await grammars.close()
    await grammars.check(good)
    with pytest.raises(InvalidRequest):
        await grammars.check(bad)
    assert grammars._process is None


async def test_one_that_takes_too_long_is_refused() -> None:
    judge = Grammars(SystemClock(), core_seconds=0.001)
    with pytest.raises(InvalidRequest, match="pattern: it is too complex"):
        await judge.check(asked(pattern="abc"))
    assert judge._process is None


async def test_it_is_told_how_a_process_that_served_before_has_died(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the question, which is not put again; or of something else."""
    await grammars.check(asked(format="json"))
    started = []

    async def start(core_seconds: float) -> Any:
        started.append(core_seconds)
        return await real(core_seconds)

    real = grammars_module._started
    monkeypatch.setattr(grammars_module, "_started", start)
    assert grammars._process is not None
    grammars._process.send_signal(signal.SIGPROF)
    with pytest.raises(InvalidRequest, match="too complex"):
        await grammars.check(asked(format={"type": "string"}))
    assert started == []
    await grammars.check(asked(format={"type": "integer"}))
    assert len(started) == 1


@pytest.mark.slow
async def test_what_is_hostile_is_refused_or_passes_and_the_next_is_judged(
    grammars: Grammars,
) -> None:
    twice = [{"$ref": "#/$defs/d1"}] * 2
    hostile: list[dict[str, Any]] = [
        {"pattern": "(" * 5000 + "a" + ")" * 5000},
        {"pattern": "a?" * 50_000},
        {"format": {"enum": [f"v{n}" for n in range(150_000)]}},
        {"format": {"$defs": {"d1": {"allOf": [{"$ref": "#"}]}}, "allOf": twice}},
        {"format": {"type": "integer", "multipleOf": 999999937, "minimum": 0, "maximum": 1e15}},
    ]
    for each in hostile:
        with contextlib.suppress(InvalidRequest):
            await grammars.check(asked(**each))
    await grammars.check(asked(format={"type": "integer"}))


async def test_a_process_that_is_gone_is_replaced(grammars: Grammars) -> None:
    await grammars.check(asked(format="json"))
    assert grammars._process is not None
    grammars._process.kill()
    await grammars.check(asked(format={"type": "string"}))
