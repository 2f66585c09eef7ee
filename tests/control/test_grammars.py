"""Grammars are judged before their requests are admitted, outside the daemon."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import uvloop

from mlxd.control import grammars as grammars_module
from mlxd.control.grammars import Grammars
from mlxd.control.turns import Turns
from mlxd.core.clock import SystemClock
from mlxd.core.errors import InvalidRequest, Overloaded
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


async def test_who_has_many_judged_holds_nobody_up_for_all_of_them(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[str] = []
    all_wait = asyncio.Event()

    async def told(line: bytes) -> Any:
        judged.append(line.decode())
        await all_wait.wait()
        return {"words": ""}

    monkeypatch.setattr(grammars, "_told", told)
    many = [(f"much {number}", "much") for number in range(8)]
    checks = [
        asyncio.create_task(grammars.check(asked(format={"const": word}), client))
        for word, client in (*many, ("little", "little"))
    ]
    while len(grammars._questions) < len(checks):  # noqa: ASYNC110 - they say nothing
        await asyncio.sleep(0.001)
    checks[5].cancel()
    await asyncio.wait([checks[5]])
    all_wait.set()
    await asyncio.gather(*checks, return_exceptions=True)
    assert ["little" in line for line in judged].index(True) <= 2
    assert len(judged) == len(checks) - 1, "all but the one that was given up"
    assert not grammars._turns._waiting


async def test_who_gives_up_waits_no_more() -> None:
    turns = Turns()

    async def take(client: str) -> None:
        async with turns.turn(client):
            pass

    async with turns.turn("first"):
        waiting = [asyncio.create_task(take(client)) for client in ("much", "much", "little")]
        await asyncio.sleep(0)
        for task in waiting[1:]:
            task.cancel()
        await asyncio.wait(waiting[1:])
        assert {client: len(line) for client, line in turns._waiting.items()} == {"much": 1}
    await asyncio.wait_for(waiting[0], 5)


@pytest.mark.parametrize("accident", ["late", "killed", "ended"])
async def test_an_accident_is_no_verdict(accident: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which may come again, and is then judged."""
    judge, request = Grammars(SystemClock(), patience=0.0001), asked(format={"type": "string"})
    if accident != "late":
        judge = Grammars(SystemClock())

    async def answer(process: Any, line: bytes) -> bytes:
        if accident == "killed":
            process.kill()
        else:
            process.stdin.close()
        await process.wait()
        return b""

    if accident != "late":
        monkeypatch.setattr(grammars_module, "_answer", answer)
    with pytest.raises(Overloaded) as caught:
        await judge.check(request)
    assert caught.value.retry_after == 1.0
    assert not judge._known
    monkeypatch.undo()
    judge._patience = 10.0
    await judge.check(request)
    await judge.close()


async def test_one_client_does_not_fill_the_queue_and_what_it_gave_up_leaves_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judge, put, go = Grammars(SystemClock()), list[bytes](), asyncio.Event()

    async def told(line: bytes) -> Any:
        put.append(line)
        await go.wait()
        return {"words": ""}

    monkeypatch.setattr(judge, "_told", told)

    def ask(number: int, client: str) -> asyncio.Task[None]:
        return asyncio.create_task(judge.check(asked(format={"const": number}), client))

    async def until(count: int) -> None:
        for _ in range(1000):
            await asyncio.sleep(0.001)
            if len(judge._questions) == count:
                return
        raise AssertionError(judge._questions)

    tasks = [ask(n, "a") for n in range(8)]
    await until(8)
    same = [ask(3, "a"), ask(3, "b")]
    with pytest.raises(Overloaded):
        await ask(8, "a")
    tasks.append(ask(9, "b"))
    await until(9)
    for task in tasks[4:8]:
        task.cancel()
    await until(5)
    go.set()
    await asyncio.gather(*tasks[:4], *same, tasks[8])
    assert len(put) == 5
    await judge.close()


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
    process = grammars._process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    asking = asyncio.ensure_future(grammars.check(asked(format={"type": "string"})))
    await asyncio.sleep(0.05)  # the question is put
    process.send_signal(signal.SIGPROF)
    process.send_signal(signal.SIGCONT)
    with pytest.raises(InvalidRequest, match="too complex"):
        await asking
    assert started == []
    await grammars.check(asked(format={"type": "integer"}))
    assert len(started) == 1


@pytest.mark.parametrize("kills", [1, 2])
async def test_where_its_fresh_process_is_killed_a_question_is_put_once_more(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch, kills: int
) -> None:
    """Not by the question, but as a system short of memory does."""
    killed: list[int] = []

    async def start(core_seconds: float) -> Any:
        process = await real(core_seconds)
        if len(killed) < kills:
            process.kill()
            killed.append(process.pid)
        return process

    real = grammars_module._started
    monkeypatch.setattr(grammars_module, "_started", start)
    with pytest.raises(Overloaded) if kills > 1 else contextlib.nullcontext():
        await grammars.check(asked(format="json"))


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


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_a_process_that_has_long_been_gone_is_replaced(run: Callable[..., None]) -> None:
    """Its pipe is closed by then: uvloop takes nothing for that any more."""

    async def main() -> None:
        grammars = Grammars(SystemClock())
        await grammars.check(asked(format="json"))
        process = grammars._process
        assert process is not None
        assert process.stdin is not None
        process.kill()
        await process.wait()
        with contextlib.suppress(OSError):
            await process.stdin.wait_closed()
        await grammars.check(asked(format={"type": "string"}))
        await grammars.close()

    run(main())


async def test_what_was_given_up_takes_no_turn() -> None:
    turns, order = Turns(), list[str]()

    async def take(client: str) -> None:
        async with turns.turn(client):
            order.append(client)

    async with turns.turn("somebody"):
        given_up = [asyncio.create_task(take("little")) for _ in range(3)]
        waiting = [asyncio.create_task(take(client)) for client in ("little", *["much"] * 3)]
        await asyncio.sleep(0)
        for one in given_up:  # who have not heard of it when the turn goes on
            one.cancel()
    await asyncio.gather(*waiting)
    await asyncio.wait(given_up)
    assert all(one.cancelled() for one in given_up)
    assert order == ["little", "much", "much", "much"]


async def test_a_turn_that_came_when_it_was_given_up_goes_on_to_the_next() -> None:
    turns, order = Turns(), list[str]()

    async def take(client: str) -> None:
        async with turns.turn(client):
            order.append(client)

    async with turns.turn("somebody"):
        too_late, waiting = (asyncio.create_task(take(client)) for client in ("late", "next"))
        await asyncio.sleep(0)
    too_late.cancel()
    await asyncio.wait_for(waiting, 5)
    assert order == ["next"]
    assert not turns._waiting
