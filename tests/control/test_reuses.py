"""What a prompt's reading begins with: as an event, in the story, counted, and settled."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mlxd.cli.story import lines_of
from mlxd.control.costs import took
from mlxd.control.generation import Generation, Limits, Pulse
from mlxd.control.reuses import Counts, Reuses
from mlxd.control.telling import Telling
from mlxd.control.transcript import Transcript
from mlxd.core.caller import Caller
from mlxd.core.clock import ManualClock, SystemClock
from mlxd.core.errors import PolicyLine, WorkerCrashed
from mlxd.core.events import Finished, Reuse, Started, TextDelta, collect
from mlxd.core.request import Message
from mlxd.core.story import Story
from mlxd.ipc import messages as ipc
from mlxd.server.stories import as_json
from tests.control.test_worker import order
from tests.support.conversation import Conversation

TURNS = (Message("system", "s"), Message("user", "secret"), Message("user", "words"))
ENDED = ipc.Ended(1, "stop", 10, 2, 7, 0.1, 0.2)


def generation(transcript: Transcript | None = None) -> Generation:
    limits = Limits(60.0, 60.0, 60.0, 1.0, lambda key: PolicyLine(key, "x", "y"))
    return Generation(1, limits, SystemClock(), Pulse(), transcript, fingerprint="fp")


def story() -> Story:
    clock = ManualClock()
    return Story("r", "/p", Caller("c"), 1, clock.wall(), clock.monotonic, clock.monotonic())


def told(cached: int, missed: int = -1, turn: int = -1) -> tuple[Story, dict[str, Any]]:
    tale = story()
    telling = Telling(tale, turns=TURNS)
    telling.hear([Started(10, 3)])
    telling.hear([Started(10, cached, reuse=Reuse(missed, turn))])
    return tale, tale.notes[-1].facts


class TestAsAnEvent:
    async def test_the_start_is_told_again_with_what_is_sure(self) -> None:
        running = generation()
        running.answer(ipc.Accepted(1, 10, cached_tokens=3))
        first = await running.accepted()
        running.started()
        running.reused(ipc.Reused(1, 7, 7, 2))
        running.take(ipc.Text(1, "x"))
        running.take(ENDED)
        (burst,) = [burst async for burst in running.bursts()]
        assert (first.cached_tokens, first.reuse, first.fingerprint) == (3, None, "fp")
        again = burst[0]
        assert isinstance(again, Started)
        assert (again.cached_tokens, again.reuse) == (7, Reuse(7, 2))
        assert (again.wait_seconds, again.fingerprint) == (first.wait_seconds, "fp")

    async def test_an_answer_that_goes_on_counts_as_its_prompt_was_read_first(self) -> None:
        """Its worker may have kept all of it, or nothing; and it does not start again."""
        first = generation()
        first.answer(ipc.Accepted(1, 10, cached_tokens=3))
        first.reused(ipc.Reused(1, 7))
        first.begun()
        first.leave()
        for kept in (0, 17):
            again = generation(first.transcript)
            again.answer(ipc.Accepted(1, 10, cached_tokens=kept))
            again.reused(ipc.Reused(1, kept))
            again.take(ipc.Ended(1, "stop", 10, 9, kept, 0.1, 0.2))
            (burst,) = [burst async for burst in again.bursts()]
            (end,) = burst
            assert isinstance(end, Finished)
            assert end.cached_tokens == 7

    async def test_one_that_begins_anew_counts_as_it_is_read_then(self) -> None:
        """Its worker was gone before the first token."""
        first = generation()
        first.answer(ipc.Accepted(1, 10, cached_tokens=3))
        first.reused(ipc.Reused(1, 7))
        first.fail(WorkerCrashed("gone"))
        again = generation(first.transcript)
        again.answer(ipc.Accepted(1, 10))
        again.reused(ipc.Reused(1, 0))
        again.begun()
        again.take(ipc.Ended(1, "stop", 10, 2, 0, 0.1, 0.2))
        (burst,) = [burst async for burst in again.bursts()]
        start, end = burst
        assert isinstance(start, Started)
        assert isinstance(end, Finished)
        assert (start.cached_tokens, end.cached_tokens) == (0, 0)
        assert again.transcript.cached_tokens == 0

    async def test_what_comes_behind_an_error_is_for_nobody(self) -> None:
        running = generation()
        running.answer(ipc.Accepted(1, 10))
        running.fail(WorkerCrashed("gone"))
        running.reused(ipc.Reused(1, 7))
        with pytest.raises(WorkerCrashed):
            await anext(running.bursts())

    async def test_from_the_worker_to_whoever_wants_the_whole_answer(self) -> None:
        talk = Conversation()
        whole = asyncio.create_task(collect(talk.worker.generate(order(), Transcript())))
        await asyncio.sleep(0)
        talk.says(
            ipc.Accepted(1, 10),
            ipc.Output(1, [], started=[1], reused=[ipc.Reused(1, 7), ipc.Reused(99, 1)]),
            ipc.Output(2, [ipc.Text(1, "x"), ENDED], begun=[1]),
        )
        done = await whole
        assert done.started == Started(10, 7, done.started.wait_seconds, "", Reuse())  # type: ignore[union-attr]
        assert (done.text, done.finished and done.finished.cached_tokens) == ("x", 7)
        talk.burial.cancel()


class TestInTheStory:
    def test_the_first_token_that_differs_and_whose_message_it_is_in(self) -> None:
        tale, facts = told(7, 7, 2)
        assert facts == {
            "cached_tokens": 7, "missed_token": 8, "missed_message": 3, "missed_role": "user",
        }  # fmt: skip
        assert tale.cached_tokens == 7
        text = "\n".join(lines_of(as_json(tale) | {"waits": None}))
        assert (
            "of its prompt 7 tokens were kept: the nearest kept prompt differs at token 8, in"
            " message 3 (user)"
        ) in text
        assert "secret" not in text
        assert "words" not in text

    @pytest.mark.parametrize(
        ("cached", "missed", "turn", "words"),
        [
            (0, -1, -1, "of its prompt nothing was kept"),
            (1204, -1, -1, "of its prompt 1,204 tokens were kept"),
            (0, 1203, -1, "nothing was kept: the nearest kept prompt differs at token 1,204"),
            (0, 1203, 9, "nothing was kept: the nearest kept prompt differs at token 1,204"),
            (0, -1, 2, "of its prompt nothing was kept"),
        ],
    )
    def test_what_is_not_known_is_not_said(
        self, cached: int, missed: int, turn: int, words: str
    ) -> None:
        tale, facts = told(cached, missed, turn)
        assert facts["missed_message"] is facts["missed_role"] is None
        assert any(line.endswith(words) for line in lines_of(as_json(tale) | {"waits": None}))

    def test_the_end_has_the_last_word(self) -> None:
        tale = story()
        telling = Telling(tale, turns=TURNS)
        telling.hear([Started(10, 3), Started(10, 7, reuse=Reuse())])
        telling.hear([TextDelta("x")])
        telling.finished(Finished("stop", 10, 2, 6))
        assert (tale.prompt_tokens, tale.cached_tokens) == (10, 6)
        assert [note.what for note in tale.notes] == ["started", "reused", "finished"]


class TestCounts:
    def test_by_model_and_by_what_was_found(self) -> None:
        reuses = Reuses()
        reuses.add("m", Started(10, 9, reuse=Reuse()))
        reuses.add("m", Started(10, 4, reuse=Reuse(4)))
        reuses.add("m", Started(10, 0, reuse=Reuse(0)))
        reuses.add("other", Started(5, 0, reuse=Reuse()))
        assert reuses.of("m") == Counts(1, 1, 1, reused=13, computed=17)
        assert [name for name, _ in reuses.each()] == ["m", "other"]
        assert reuses.of("never asked") == Counts()

    def test_a_cached_token_costs_little_in_the_queue(self) -> None:
        assert took(1000, 0) == 1000
        assert took(1000, 800) == 250
