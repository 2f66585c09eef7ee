"""Whole = fold of stream: each codec, over each recorded generation, says the same both ways."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from mlxd.core.events import Finished, Reuse, Started, TextDelta

Json = dict[str, Any]


def lines_of(stream: bytes) -> list[Json]:
    assert stream.endswith(b"\n")
    return [json.loads(line) for line in stream.decode().splitlines()]


def chunks_of(stream: bytes) -> list[Json]:
    assert stream.endswith(b"\n\n")
    *events, last = stream.decode().splitlines()[::2]
    assert last == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events]


def fold_ollama(stream: bytes) -> Json:
    """What a client makes of a stream: texts joined, lists chained, the last record's figures."""
    whole: Json = {}
    for record in lines_of(stream):
        merge(whole, record)
    return whole


def merge(whole: Json, record: Json) -> None:
    for key, value in record.items():
        if isinstance(value, dict):
            merge(whole.setdefault(key, {}), value)
        elif key in ("response", "content", "thinking"):
            whole[key] = whole.get(key, "") + value
        elif isinstance(value, list):
            whole[key] = whole.get(key, []) + value
        else:
            whole[key] = value


def fold_openai_chat(stream: bytes) -> Json:
    chunks = chunks_of(stream)
    usage = chunks.pop()
    assert usage["choices"] == []
    message: Json = {"role": "assistant", "content": "", "refusal": None}
    entries: list[Json] = []
    reason = None
    for chunk in chunks:
        assert chunk["usage"] is None
        (choice,) = chunk["choices"]
        assert reason is None, "nothing comes after the finish_reason"
        reason = choice["finish_reason"]
        entries += (choice["logprobs"] or {"content": []})["content"]
        fold_delta(message, choice["delta"])
    if "tool_calls" in message and not message["content"]:
        message["content"] = None
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
    if entries:
        choice["logprobs"] = {"content": entries, "refusal": None}
    return usage | {"object": "chat.completion", "choices": [choice]}


def fold_delta(message: Json, delta: Json) -> None:
    for key, value in delta.items():
        if key == "tool_calls":
            calls = message.setdefault(key, [])
            for piece in value:
                assert piece.pop("index") == len(calls)
                calls.append(piece)
        elif key != "role":
            message[key] = message.get(key, "") + (value or "")


def fold_openai_completion(stream: bytes) -> Json:
    *chunks, usage = chunks_of(stream)
    text, reason = "", None
    lists: dict[str, list[Any]] | None = None
    for chunk in chunks:
        (choice,) = chunk["choices"]
        text, reason = text + choice["text"], choice["finish_reason"]
        if choice["logprobs"]:
            lists = lists or {key: [] for key in choice["logprobs"]}
            for key, values in choice["logprobs"].items():
                lists[key] += values
    choice = {"index": 0, "text": text, "logprobs": lists, "finish_reason": reason}
    return usage | {"choices": [choice]}


def fold_openai_responses(stream: bytes) -> Json:
    """The last response, with every item made of the pieces that were streamed."""
    events = [
        json.loads(line.removeprefix("data: "))
        for line in stream.decode().splitlines()
        if line.startswith("data: ")
    ]
    items: list[Json] = []
    for event in events:
        fold_event(items, event)
    return events[-1]["response"] | {"output": items}


def fold_event(items: list[Json], event: Json) -> None:
    item = items[event["output_index"]] if "item_id" in event else {}
    match event["type"].removeprefix("response."):
        case "output_item.added":
            assert event["output_index"] == len(items)
            items.append(event["item"])
        case "content_part.added":
            item["content"].append(event["part"])
        case "reasoning_summary_part.added":
            item["summary"].append(event["part"])
        case "output_text.delta":
            item["content"][0]["text"] += event["delta"]
            item["content"][0]["logprobs"] += event["logprobs"]
        case "reasoning_summary_text.delta":
            item["summary"][0]["text"] += event["delta"]
        case "function_call_arguments.delta":
            item["arguments"] += event["delta"]
        case "output_item.done":
            items[-1]["status"] = event["item"]["status"]
        case _:
            pass


def events_of(stream: bytes) -> list[Json]:
    """Anthropic's: each is named after its type."""
    assert stream.endswith(b"\n\n")
    events = []
    for text in stream.decode().removesuffix("\n\n").split("\n\n"):
        name, data = text.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def fold_anthropic(stream: bytes) -> Json:
    """Blocks neither overlap nor skip a number; nothing comes before the start or after the end."""
    first, *events, delta, last = events_of(stream)
    message: Json = first["message"]
    assert (first["type"], message["content"], last) == (
        "message_start",
        [],
        {"type": last["type"]},
    )
    assert (delta["type"], last["type"]) == ("message_delta", "message_stop")
    block: Json | None = None
    for event in events:
        assert event["index"] == len(message["content"])
        if event["type"] == "content_block_start":
            assert block is None
            block = event["content_block"]
            continue
        assert block is not None
        if event["type"] == "content_block_stop":
            message["content"].append(block)
            block = None
        else:
            add_to(block, event["delta"])
    assert block is None
    return message | delta["delta"] | {"usage": message["usage"] | delta["usage"]}


def add_to(block: Json, delta: Json) -> None:
    kind = delta.pop("type")
    assert (
        kind
        in {
            "text": ("text_delta",),
            "thinking": ("thinking_delta", "signature_delta"),
            "tool_use": ("input_json_delta",),
        }[block["type"]]
    )
    ((name, value),) = delta.items()
    if name == "partial_json":
        block["input"] = json.loads(value)
    else:
        block[name] += value


FOLDS: dict[str, Callable[[bytes], Json]] = {
    "anthropic.messages": fold_anthropic,
    "ollama.generate": fold_ollama,
    "ollama.chat": fold_ollama,
    "openai.chat": fold_openai_chat,
    "openai.completion": fold_openai_completion,
    "openai.responses": fold_openai_responses,
}
LOGPROBS: dict[str, Json] = {
    "openai.completion": {"logprobs": 1},
    "openai.responses": {"include": ["message.output_text.logprobs"]},
}


@pytest.fixture
def asked(spoken, events) -> Json:
    """Ask for logprobs exactly when the recording has them."""
    if not any(getattr(event, "logprobs", ()) for event in events):
        return {}
    return LOGPROBS.get(spoken.name, {"logprobs": True})


async def test_what_is_streamed_is_what_is_answered_whole(
    spoken, events, asked, completion_of, now
) -> None:
    call = spoken.call(**asked)
    streamed = spoken.codec.encoder(call).feed(events, now)
    whole = spoken.codec.render(call, [await completion_of(events)], now)
    assert FOLDS[spoken.name](streamed) == json.loads(json.dumps(whole))


def test_bursts_change_nothing(spoken, events, asked, now) -> None:
    call = spoken.call(**asked)
    one_by_one = spoken.codec.encoder(call)
    assert b"".join(one_by_one.feed([event], now) for event in events) == spoken.codec.encoder(
        call
    ).feed(events, now)


def test_logprobs_nobody_asked_for_are_not_sent(spoken, events_of, now) -> None:
    stream = spoken.codec.encoder(spoken.call()).feed(events_of("logprobs"), now)
    assert b'"logprob"' not in stream
    assert b'"tokens"' not in stream


def test_a_start_alone_sends_nothing(spoken, now) -> None:
    """So the status line can wait for something to say."""
    assert spoken.codec.encoder(spoken.call()).feed([Started(1)], now) == b""


CACHED = {
    "anthropic.messages": lambda usage: usage["cache_read_input_tokens"],
    "openai.chat": lambda usage: usage["prompt_tokens_details"]["cached_tokens"],
    "openai.completion": lambda usage: usage["prompt_tokens_details"]["cached_tokens"],
    "openai.responses": lambda usage: usage["input_tokens_details"]["cached_tokens"],
}


def test_a_start_that_comes_again_says_what_was_really_cached(spoken, now) -> None:
    """Streamed and whole; Ollama counts all of a prompt and says nothing of a cache."""
    mark = {"cache_control": {"type": "ephemeral"}}
    call = spoken.call(**(mark if spoken.name == "anthropic.messages" else {}))
    first, again = Started(12, 4), Started(12, 9, reuse=Reuse(9))
    bursts = ([first], [again], [TextDelta("x")], [Finished("stop", 12, 1, cached_tokens=9)])
    encoder = spoken.codec.encoder(call)
    told = [encoder.feed(burst, now) for burst in bursts]
    assert told[:2] == [b"", b""], "it sends nothing by itself"
    streamed = FOLDS[spoken.name](b"".join(told))
    if spoken.name in CACHED:
        assert CACHED[spoken.name](streamed["usage"]) == 9
    else:
        assert streamed["prompt_eval_count"] == 12
    if spoken.name == "anthropic.messages":
        start = json.loads(told[2].split(b"data: ")[1].split(b"\n")[0])["message"]["usage"]
        assert (start["input_tokens"], start["cache_read_input_tokens"]) == (3, 9)


def test_one_record_for_each_delta(spoken, now) -> None:
    encoder = spoken.codec.encoder(spoken.call())
    encoder.feed([Started(1), TextDelta("the first may bring an opening")], now)
    stream = encoder.feed([TextDelta(str(n)) for n in range(100)], now)
    assert stream.count(b"\n\n" if spoken.codec.heartbeat else b"\n") == 100
