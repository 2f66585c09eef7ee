"""Several answers to one request: `n`, `best_of`, several prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from mlxd.core.events import (
    Burst,
    Completion,
    Echo,
    Finished,
    Piece,
    ReasoningDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCall,
)
from mlxd.dialects.base import Call, Codec
from mlxd.dialects.openai import ChatCodec, CompletionCodec

CHAT, COMPLETION = ChatCodec(), CompletionCodec()
STARTED = Started(5, cached_tokens=3, fingerprint="fp_1")


def asked(codec: Codec = CHAT, **body: Any) -> Call:
    usual = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "prompt": "hi"}
    return codec.parse(usual | body, id="abc", now=5.5)


def streamed(codec: Codec, call: Call, *bursts: tuple[int, Burst]) -> list[Any]:
    """The chunks of the bursts of numbered choices."""
    encoder = codec.encoder(call)
    stream = b"".join(encoder.feed(burst, 9.0, choice) for choice, burst in bursts)
    *chunks, end = stream.decode().split("\n\n")[:-1]
    assert end == "data: [DONE]"
    assert stream.count(b"[DONE]") == 1
    return [json.loads(chunk.removeprefix("data: ")) for chunk in chunks]


def text(value: str, *logprobs: float) -> Completion:
    entries = [TokenLogprob("x", b"x", one) for one in logprobs]
    ended = Finished("stop", 5, 2, 3, reasoning_tokens=1)
    pieces: list[Piece] = [TextDelta(value)]
    return Completion(STARTED, text=value, logprobs=entries, pieces=pieces, finished=ended)


def test_one_generation_for_each() -> None:
    call = asked(n=3)
    assert len(call.requests) == call.choices == 3
    assert len(set(map(id, (request.messages for request in call.requests)))) == 1


@pytest.mark.parametrize(
    ("seed", "each"),
    [(None, [None] * 3), (7, [7, 8, 9]), (2**63 - 2, [2**63 - 2, 2**63 - 1, 0]), (0, [0, 1, 2])],
)
def test_seeds_follow_each_other(seed: int | None, each: list[int | None]) -> None:
    assert [one.sampling.seed for one in asked(n=3, seed=seed).requests] == each


def test_each_prompt_is_answered_as_if_it_were_alone() -> None:
    call = asked(COMPLETION, prompt=["a", [5, 6]], n=2, seed=1)
    found = [(one.text, one.token_ids, one.sampling.seed) for one in call.requests]
    assert found == [("a", None, 1), ("a", None, 2), (None, (5, 6), 1), (None, (5, 6), 2)]


def test_whole_answers_are_numbered() -> None:
    whole = CHAT.render(asked(n=2), [text("a"), text("b")], 9.0)
    found = [(one["index"], one["message"]["content"]) for one in whole["choices"]]
    assert found == [(0, "a"), (1, "b")]
    assert whole["system_fingerprint"] == "fp_1"


def test_a_prompt_counts_once_however_many_answers_it_has() -> None:
    call = asked(COMPLETION, prompt=["a", "b"], n=2)
    usage = COMPLETION.render(call, [text("x")] * 4, 9.0)["usage"]
    assert usage == {
        "prompt_tokens": 10,
        "completion_tokens": 8,
        "total_tokens": 18,
        "prompt_tokens_details": {"cached_tokens": 6},
        "completion_tokens_details": {"reasoning_tokens": 4},
    }


def test_choices_open_together_and_in_order() -> None:
    """The client library takes the place in which a choice first appears for its index."""
    end = Finished("stop", 5, 2)
    chunks = streamed(
        CHAT,
        asked(n=3),
        (2, [STARTED]),
        (2, [TextDelta("c")]),
        (0, [STARTED, TextDelta("a"), end]),
        (1, [STARTED, ReasoningDelta("b")]),
        (2, [end]),
        (1, [end]),
    )
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [(one["index"], one["delta"].get("role")) for one in choices[:3]] == [
        (0, "assistant"),
        (1, "assistant"),
        (2, "assistant"),
    ]
    assert [one["index"] for one in choices[3:]] == [2, 0, 0, 1, 2, 1]
    assert {chunk["system_fingerprint"] for chunk in chunks} == {"fp_1"}


@pytest.mark.parametrize("first", [0, 1])
def test_what_one_choice_has_read_for_the_others_is_not_cached(first: int) -> None:
    """Whichever of them that was, and whichever ends first."""
    call = asked(n=2, stream_options={"include_usage": True})
    read, found = Finished("stop", 5, 2, 1), Finished("stop", 5, 2, 4)
    *_, last = streamed(CHAT, call, (first, [STARTED, read]), (1 - first, [found]))
    assert last["usage"]["prompt_tokens_details"] == {"cached_tokens": 1}


def test_each_prompt_counts_as_that_of_its_choices_read_it_that_was_first() -> None:
    call = asked(COMPLETION, prompt=["a", "b"], n=2)
    cached = (0, 4, 4, 3)
    ends = [Completion(finished=Finished("stop", 5, 2, one)) for one in cached]
    usage = COMPLETION.render(call, ends, 9.0)["usage"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 3}


@pytest.mark.parametrize("codec", [CHAT, COMPLETION], ids=["chat", "completion"])
def test_one_usage_behind_the_last_end(codec: Codec) -> None:
    end = Finished("length", 5, 2, 3)
    call = asked(codec, n=2, stream_options={"include_usage": True})
    *others, last = streamed(codec, call, (1, [STARTED, end]), (0, [STARTED, TextDelta("x"), end]))
    assert [chunk["usage"] for chunk in others] == [None] * len(others)
    assert last["choices"] == []
    assert last["usage"] == codec.render(call, [text("x")] * 2, 9.0)["usage"] | {
        "completion_tokens_details": {"reasoning_tokens": 0}
    }


def test_tool_calls_of_choices_have_ids_of_their_own() -> None:
    call, end = asked(n=2), Finished("stop", 5, 2)
    made = [ToolCall("f", {}), ToolCall("g", {})]
    chunks = streamed(CHAT, call, (0, [STARTED, *made, end]), (1, [STARTED, *made, end]))
    pieces = [
        piece for chunk in chunks for piece in chunk["choices"][0]["delta"].get("tool_calls", ())
    ]
    assert [piece["index"] for piece in pieces] == [0, 1, 0, 1]
    assert len({piece["id"] for piece in pieces}) == 4
    answers = [Completion(STARTED, tool_calls=made, finished=end)] * 2
    whole = CHAT.render(call, answers, 9.0)["choices"]
    told = [one for choice in whole for one in choice["message"]["tool_calls"]]
    assert [one["id"] for one in told] == [piece["id"] for piece in pieces]


def test_each_choice_has_its_own_offsets() -> None:
    call, end = asked(COMPLETION, n=2, logprobs=0), Finished("stop", 5, 2)
    piece = TextDelta("ab", (TokenLogprob("ab", b"ab", -1.0),))
    chunks = streamed(
        COMPLETION, call, (0, [STARTED, piece]), (1, [STARTED, piece, piece, end]), (0, [end])
    )
    offsets: dict[int, list[int]] = {0: [], 1: []}
    for chunk in chunks:
        (choice,) = chunk["choices"]
        offsets[choice["index"]] += (choice["logprobs"] or {"text_offset": []})["text_offset"]
    assert offsets == {0: [0], 1: [0, 2]}


class TestBestOf:
    def likeliest(self, answers: Sequence[Completion], **body: Any) -> list[tuple[int, str]]:
        whole = COMPLETION.render(asked(COMPLETION, **body), answers, 9.0)
        return [(one["index"], one["text"]) for one in whole["choices"]]

    def test_the_likeliest_per_token_are_told(self) -> None:
        answers = [text("a", -1.0, -1.0, -1.0), text("b", -1.5), text("c", -0.5, -0.6)]
        assert self.likeliest(answers, best_of=3) == [(0, "c")]
        assert self.likeliest(answers, best_of=3, n=2) == [(0, "c"), (1, "a")]

    def test_equal_ones_keep_their_order(self) -> None:
        answers = [text("a", -1.0), text("b", -1.0), text("c", -2.0)]
        assert self.likeliest(answers, best_of=3) == [(0, "a")]

    def test_of_each_prompt(self) -> None:
        answers = [text("a", -2.0), text("b", -1.0), text("c", -1.0), text("d", -3.0)]
        body = {"prompt": ["x", "y"], "best_of": 2}
        assert self.likeliest(answers, **body) == [(0, "b"), (1, "c")]

    def test_logprobs_that_only_rank_are_not_told(self) -> None:
        call = asked(COMPLETION, best_of=2)
        assert [one.logprobs for one in call.requests] == [0, 0]
        whole = COMPLETION.render(call, [text("a", -1.0), text("b", -2.0)], 9.0)
        assert [one["logprobs"] for one in whole["choices"]] == [None]
        shown = asked(COMPLETION, best_of=2, logprobs=0)
        whole = COMPLETION.render(shown, [text("a", -1.0), text("b", -2.0)], 9.0)
        assert whole["choices"][0]["logprobs"]["token_logprobs"] == [-1.0]

    def test_all_that_were_made_are_counted(self) -> None:
        call = asked(COMPLETION, best_of=3)
        usage = COMPLETION.render(call, [text("a", -1.0)] * 3, 9.0)["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (5, 6)

    def test_as_many_as_are_wanted_is_nothing_special(self) -> None:
        assert asked(COMPLETION, n=2, best_of=2) == asked(COMPLETION, n=2)


@pytest.mark.parametrize(
    ("body", "plural"),
    [({"prompt": ["a", "b"]}, "prompt"), ({"n": 2}, "n"), ({"best_of": 2}, "best_of")],
)
def test_a_refusal_names_what_asked_for_several(body: dict[str, Any], plural: str) -> None:
    assert asked(COMPLETION, **body).plural == plural


@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_echo_that_comes_with_what_was_found_of_the_prompt_is_told(place: int) -> None:
    """The engine tells of both when it begins, in whatever order a burst has them."""
    call = asked(COMPLETION, echo=True)
    burst: list[Any] = [STARTED, STARTED]
    burst.insert(place, Echo("hi"))
    end = Finished("stop", 5, 1)
    chunks = streamed(COMPLETION, call, (0, (STARTED,)), (0, tuple(burst)), (0, (end,)))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "hi"


def test_an_echo_stands_before_every_answer() -> None:
    call = asked(COMPLETION, n=2, echo=True, logprobs=1, max_tokens=0)
    assert {(one.echo, one.max_tokens) for one in call.requests} == {(True, 0)}
    nothing = float("nan")
    echo = Echo("hi", (TokenLogprob("h", b"h", nothing), TokenLogprob("i", b"i", -1.0)))
    answer = Completion(STARTED, echo=echo, finished=Finished("length", 2, 0))
    whole = COMPLETION.render(call, [answer] * 2, 9.0)
    assert [one["text"] for one in whole["choices"]] == ["hi", "hi"]
    assert whole["choices"][1]["logprobs"] == {
        "tokens": ["h", "i"],
        "token_logprobs": [None, -1.0],
        "top_logprobs": [None, {"i": -1.0}],
        "text_offset": [0, 1],
    }
    assert whole["usage"]["completion_tokens"] == 0
