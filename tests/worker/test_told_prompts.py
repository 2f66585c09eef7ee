"""Requests that want their prompt alone: how it reads, and how many tokens it has."""

from __future__ import annotations

from typing import Any

import pytest

from mlxd.core.request import Message
from mlxd.ipc.messages import unpacked
from tests.support.worker_process import Told, WorkerProcess

pytestmark = pytest.mark.mlx

TURNS = (Message("system", "Сервер"), Message("user", "模型 fox 😀"))
WRITTEN = (
    "<|im_start|>system\nСервер<|im_end|>\n<|im_start|>user\n模型 fox 😀<|im_end|>\n"
    "<|im_start|>assistant\n"
)


def prompt_of(worker: WorkerProcess, **request: Any) -> Told:
    return worker.run(want="prompt", **request)


def test_a_conversation_reads_as_its_template_writes_it(worker: WorkerProcess) -> None:
    told = prompt_of(worker, messages=TURNS)
    answered = worker.run(messages=TURNS, max_tokens=1)
    assert told.text == WRITTEN
    assert told.started == 0
    assert told.accepted is not None
    assert told.ended is not None
    assert answered.accepted is not None
    assert told.accepted.prompt == answered.accepted.prompt
    assert told.ended.prompt_tokens == answered.accepted.prompt_tokens
    assert (told.ended.reason, told.ended.completion_tokens) == ("stop", 0)


def test_text_is_itself_and_token_ids_are_read(worker: WorkerProcess) -> None:
    told = prompt_of(worker, text="A server  answers\n模型<|im_end|>")
    assert told.text == "A server  answers\n模型<|im_end|>"
    assert told.accepted is not None
    tokens = tuple(unpacked(told.accepted.prompt))
    assert prompt_of(worker, token_ids=tokens).text == told.text


def test_one_that_is_too_long_to_be_answered_is_counted(worker: WorkerProcess) -> None:
    told = prompt_of(worker, text="fox " * 9000, context=64, max_prompt=8)
    assert told.ended is not None
    assert told.ended.prompt_tokens >= 9000


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"token_ids": (99999,)}, "token id 99999 is not in the model's vocabulary (0 to 511)"),
        ({"text": ""}, "the prompt is empty"),
        ({"messages": ()}, "the conversation has no messages"),
    ],
)
def test_what_is_no_prompt_is_refused(worker: WorkerProcess, asked: Any, words: str) -> None:
    told = prompt_of(worker, **asked)
    assert told.refused is not None
    assert told.refused.message == words
    assert told.pieces == []
