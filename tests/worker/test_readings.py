"""Prompts that are read outside the batch, by a scripted reader beside a scripted engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from msgspec import structs

from mlxd.ipc.messages import (
    Accepted,
    Budget,
    Cancel,
    Cancelled,
    Echoed,
    Ended,
    Need,
    Output,
    Refused,
    Text,
    Up,
    Vector,
)
from mlxd.worker.job import Echo, Job, Progress
from mlxd.worker.reading import Work
from mlxd.worker.refusal import Refusal
from tests.worker.test_loop import KIB, Heap, Script, job, run

pytestmark = pytest.mark.mlx


class Reader:
    """Takes as many chunks for each prompt as that has tokens; refuses those that it is told to."""

    def __init__(self, refuse: int = -1, fail: int = -1) -> None:
        self.refuse = refuse
        self.fail = fail
        self.chunks: list[int] = []

    def read(self, job: Job) -> Work:
        for n in range(len(job.tokens)):
            if n:
                yield None
            self.chunks.append(job.id)
        if job.id == self.fail:
            raise TypeError("no such number")
        if job.id == self.refuse:
            raise Refusal("no vector", code="unsupported")
        if job.echo is not None:
            yield [Echoed(job.id, job.echo.text)]
        yield [Vector(job.id, b"1234")]


def embedding(id: int, chunks: int = 1) -> Job:
    made = job(id, max_tokens=0)
    request = replace(made.request, want="embedding")
    return replace(made, request=request, tokens=[5] * chunks)


def echo(id: int, chunks: int = 1, *, scored: bool = True, max_tokens: int = 4) -> Job:
    made = job(id, max_tokens=max_tokens)
    request = replace(made.request, echo=True, logprobs=2 if scored else None)
    return replace(made, request=request, tokens=[5] * chunks, echo=Echo("Once"))


def said(sent: list[Up], id: int) -> list[Any]:
    """All about one request, in order."""
    told: list[Any] = []
    for message in sent:
        if isinstance(message, Accepted | Refused) and message.id == id:
            told.append(message)
        if isinstance(message, Output):
            told += ["started"] * (id in message.started)
            told += [piece for piece in message.pieces if piece.id == id]
    return told


def kinds(sent: list[Up], id: int) -> list[str]:
    return [one if isinstance(one, str) else type(one).__name__ for one in said(sent, id)]


def test_they_are_read_one_after_the_other_and_answered() -> None:
    reader, progress = Reader(), Progress()
    wire = run(Script(), [embedding(1, 3), embedding(2, 2)], reader=reader, at=progress)
    assert reader.chunks == [1, 1, 1, 2, 2]
    for id, tokens in ((1, 3), (2, 2)):
        assert kinds(wire.sent, id) == ["Accepted", "started", "Vector", "Ended"]
        *_, ended = said(wire.sent, id)
        assert (ended.reason, ended.prompt_tokens, ended.completion_tokens) == ("stop", tokens, 0)
    assert progress.running == 0


def test_the_engine_steps_between_two_chunks() -> None:
    reader = Reader()
    wire = run(Script(), [job(1, max_tokens=20), embedding(2, 8)], reader=reader)
    outputs = [message for message in wire.sent if isinstance(message, Output)]
    begun = next(n for n, message in enumerate(outputs) if 2 in message.started)
    ended = next(n for n, m in enumerate(outputs) if any(isinstance(p, Vector) for p in m.pieces))
    texts = [p for message in outputs[begun:ended] for p in message.pieces if isinstance(p, Text)]
    assert len(texts) == 7


def test_a_cancel_is_heard_between_two_chunks() -> None:
    reader = Reader()
    wire = run(
        Script(), [embedding(1, 50), embedding(2)], [], [], [Cancel(1)],
        paced=True, reader=reader,
    )  # fmt: skip
    assert kinds(wire.sent, 1) == ["Accepted", "started", "Cancelled"]
    assert reader.chunks.count(1) < 10
    assert kinds(wire.sent, 2) == ["Accepted", "started", "Vector", "Ended"]


def test_one_that_waits_for_its_turn_is_cancelled_too() -> None:
    reader = Reader()
    wire = run(
        Script(), [embedding(1, 9), embedding(2), embedding(3)], [Cancel(2)],
        paced=True, reader=reader,
    )  # fmt: skip
    assert kinds(wire.sent, 2) == ["Cancelled"]
    assert reader.chunks == [1] * 9 + [3]


def test_one_that_waits_for_memory_is_cancelled_and_makes_way() -> None:
    room = Budget(101 * KIB, 0, 0)
    wire = run(
        Script(), [embedding(1, 300), embedding(2)], [Cancel(1)],
        budget=room, reader=Reader(), paced=True,
    )  # fmt: skip
    assert [need.id for need in wire.of(Need)] == [1]
    assert kinds(wire.sent, 1) == ["Cancelled"]
    assert kinds(wire.sent, 2)[-1] == "Ended"


def test_one_that_is_refused_makes_way() -> None:
    wire = run(Script(), [embedding(1), embedding(2)], reader=Reader(refuse=1))
    assert said(wire.sent, 1)[-1] == Refused(1, "unsupported", "no vector")
    assert kinds(wire.sent, 2)[-1] == "Ended"


def test_one_that_fails_in_any_way_ends_alone() -> None:
    engine = Script()
    wire = run(engine, [job(1), embedding(2, 2), embedding(3)], reader=Reader(fail=2))
    refused = said(wire.sent, 2)[-1]
    assert refused == Refused(2, "unsupported", "this model cannot read the input")
    assert [kinds(wire.sent, id)[-1] for id in (1, 3)] == ["Ended", "Ended"]


def test_only_one_asks_for_memory_and_the_others_do_not_add_up() -> None:
    room = Budget(101 * KIB, 0, 0)
    wire = run(Script(), [embedding(n, 200) for n in range(1, 6)], budget=room, reader=Reader())
    assert wire.of(Need) == []
    assert [ended.id for ended in wire.of(Ended)] == [1, 2, 3, 4, 5]


def test_one_that_never_fits_is_refused_and_the_next_is_read_at_once() -> None:
    room = Budget(101 * KIB, 101 * KIB, 0)
    final = structs.replace(room, answers=1)
    wire = run(
        Script(), [embedding(1, 300), embedding(2)], [final],
        budget=room, reader=Reader(), paced=True,
    )  # fmt: skip
    assert said(wire.sent, 1)[-1].code == "context_exceeded"
    assert kinds(wire.sent, 2)[-1] == "Ended"


def test_one_that_holds_too_much_is_ended() -> None:
    wire = run(
        Script(), [job(1, max_tokens=4000), embedding(2, 100)],
        budget=Budget(200 * KIB, 0, 0), heap=Heap(active=999 * KIB), reader=Reader(),
    )  # fmt: skip
    assert said(wire.sent, 2)[-1].code == "insufficient_memory"


def test_a_prompt_is_told_before_its_answer() -> None:
    wire = run(Script(), [echo(1, scored=False)])
    told = said(wire.sent, 1)
    assert kinds(wire.sent, 1)[:2] == ["Accepted", "Echoed"]
    assert told[1] == Echoed(1, "Once")
    assert "".join(piece.text for piece in told if isinstance(piece, Text)) == "abcd"


def test_a_scored_prompt_is_read_first_and_goes_on_in_the_engine() -> None:
    wire = run(Script(), [echo(1, 3)], reader=(reader := Reader()))
    assert reader.chunks == [1, 1, 1]
    assert kinds(wire.sent, 1)[:3] == ["Accepted", "started", "Echoed"]
    assert len(wire.of(Accepted)) == 1
    assert wire.of(Ended)[0].completion_tokens == 4


def test_one_that_is_cancelled_after_its_prompt_was_told_holds_nothing() -> None:
    wire = run(
        Script(), [echo(1, 2, max_tokens=99)], *[[]] * 4, [Cancel(1)],
        paced=True, reader=Reader(),
    )  # fmt: skip
    assert wire.of(Echoed)
    assert [piece.id for piece in wire.of(Cancelled)] == [1]


@pytest.mark.parametrize("scored", [False, True])
def test_a_prompt_without_an_answer(*, scored: bool) -> None:
    engine = Script()
    wire = run(engine, [echo(1, scored=scored, max_tokens=0)], reader=Reader())
    told = kinds(wire.sent, 1)
    assert [kind for kind in told if kind != "started"] == ["Accepted", "Echoed", "Ended"]
    ended = wire.of(Ended)[0]
    assert (ended.reason, ended.completion_tokens) == ("length", 0)
    assert engine.steps == 0
