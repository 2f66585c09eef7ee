"""What OpenAI's text completion bodies mean."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlxd.core.errors import InvalidRequest
from mlxd.core.events import (
    Completion,
    Echo,
    Finished,
    Fold,
    GenerationEvent,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
)
from mlxd.core.request import GenerationRequest, Sampling
from mlxd.dialects.openai import CompletionCodec


def parse(**body: Any) -> GenerationRequest:
    return CompletionCodec().parse({"model": "m", "prompt": "hi"} | body, id="a", now=0.0).request


def test_the_least_that_is_valid() -> None:
    assert parse() == GenerationRequest(
        model="m",
        text="hi",
        max_tokens=16,
        fallback=Sampling(temperature=1.0, top_p=1.0),
        stream=False,
    )


@pytest.mark.parametrize(
    ("prompt", "text", "token_ids"),
    [
        ("a", "a", None),
        (["a"], "a", None),
        ([1, 2], None, (1, 2)),
        ([0], None, (0,)),
        ([[1, 2]], None, (1, 2)),
    ],
)
def test_prompts(prompt: Any, text: str | None, token_ids: tuple[int, ...] | None) -> None:
    request = parse(prompt=prompt)
    assert (request.text, request.token_ids, request.messages) == (text, token_ids, None)


@pytest.mark.parametrize(("logprobs", "meant"), [(None, None), (0, 0), (5, 5)])
def test_logprobs(logprobs: int | None, meant: int | None) -> None:
    assert parse(logprobs=logprobs).logprobs == meant


def test_what_asks_for_nothing_special_passes() -> None:
    assert parse(n=1, best_of=1, echo=False, suffix="", max_tokens=None) == parse()


def test_a_suffix_needs_no_prefix() -> None:
    request = parse(prompt="", suffix=" end")
    assert (request.text, request.suffix) == ("", " end")
    assert parse(suffix=None).suffix is None


@pytest.mark.parametrize(
    ("body", "limit"),
    [({}, 16), ({"echo": True}, 16), ({"echo": True, "max_tokens": 0}, 0), ({"max_tokens": 1}, 1)],
)
def test_max_tokens(body: dict[str, Any], limit: int) -> None:
    assert parse(**body).max_tokens == limit


def test_a_token_that_is_no_text_is_called_by_its_bytes() -> None:
    """Else two of them would be one key of an object."""
    codec = CompletionCodec()
    call = codec.parse({"model": "m", "prompt": "hi", "logprobs": 2}, id="a", now=0.0)
    top = (("", b"\xd0", -1.0), ("", b"\xe4\xb8", -2.0))
    answer = Completion(logprobs=[TokenLogprob("", b"\xd0", -1.0, top)])
    (choice,) = codec.render(call, [answer], 0.0)["choices"]
    assert choice["logprobs"]["tokens"] == [r"bytes:\xd0"]
    assert choice["logprobs"]["top_logprobs"] == [{r"bytes:\xd0": -1.0, r"bytes:\xe4\xb8": -2.0}]


def test_offsets_count_whole_characters() -> None:
    """A token may be half a character, and one of the prompt may be none of its text."""
    codec = CompletionCodec()
    call = codec.parse({"model": "m", "prompt": "hi", "logprobs": 0, "echo": True}, id="a", now=0.0)
    tokens = [("<s>", b"<s>"), ("▁hi", b" hi"), ("▁you", b" you"), ("!", b"!")]
    echo = Echo("hi you!", tuple(TokenLogprob(token, raw, -1.0) for token, raw in tokens))
    halves = [TokenLogprob("\ufffd", b"\xd0", -1.0), TokenLogprob("\ufffd", b"\xaf", -1.0)]
    answer = Completion(
        echo=echo,
        pieces=[TextDelta("\u042f!")],
        logprobs=[*halves, TokenLogprob("!", b"!", -1.0)],
        finished=Finished("stop", 2, 3),
    )
    (choice,) = codec.render(call, [answer], 0.0)["choices"]
    assert choice["logprobs"]["text_offset"] == [0, 0, 2, 6, 7, 7, 8]


def test_offsets_count_no_marks_of_thinking() -> None:
    """They have probabilities, and are not in the text."""
    codec = CompletionCodec()
    call = codec.parse({"model": "m", "prompt": "hi", "logprobs": 0}, id="a", now=0.0)
    bursts: list[list[GenerationEvent]] = [
        [TextDelta("", (_scored("<think>"),))],
        [ReasoningDelta("hm", (_scored("hm"),))],
        [TextDelta("", (_scored("</think>"),))],
        [TextDelta("so", (_scored("s"), _scored("o")))],
        [TextDelta("me", ())],
        [TextDelta("!", (_scored("!"),)), Finished("stop", 2, 6)],
    ]
    encoder, fold, offsets = codec.encoder(call), Fold(), []
    for burst in bursts:
        fold.add(burst)
        for record in encoder.feed(burst, 0.0, 0).splitlines():
            if record.startswith(b"data: {"):
                (choice,) = json.loads(record.removeprefix(b"data: "))["choices"]
                offsets += (choice["logprobs"] or {"text_offset": []})["text_offset"]
    (choice,) = codec.render(call, [fold.whole()], 0.0)["choices"]
    assert (choice["text"], choice["logprobs"]["text_offset"]) == ("hmsome!", [0, 0, 2, 2, 3, 6])
    assert offsets == [0, 0, 2, 2, 3, 6]


def _scored(token: str) -> TokenLogprob:
    return TokenLogprob(token, token.encode(), -1.0, ())


@pytest.mark.parametrize("body", [{"prompt": ["a"] * 2049}, {"prompt": ["a"] * 128, "n": 17}])
def test_a_body_makes_so_many_requests_of_itself_and_no_more(body: dict[str, Any]) -> None:
    """Before any policy is asked."""
    with pytest.raises(InvalidRequest, match="2048") as caught:
        parse(**body)
    assert caught.value.param == "prompt"
