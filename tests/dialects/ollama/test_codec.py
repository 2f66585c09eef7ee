"""Ollama's records."""

from __future__ import annotations

import json

from mlxd.core.events import Burst, Completion, Finished, ReasoningDelta, Started, TextDelta
from mlxd.dialects.ollama import ChatCodec, GenerateCodec

BODY = {"model": "m", "prompt": "x"}


def test_no_duration_is_ever_zero() -> None:
    codec = GenerateCodec()
    call = codec.parse(BODY, id="a", now=5.0)
    whole = Completion(started=Started(1), finished=Finished("stop", 1, 1))
    record = codec.render(call, [whole], 5.0)
    durations = {name: value for name, value in record.items() if name.endswith("duration")}
    assert len(durations) == 4
    assert set(durations.values()) == {1}


def test_durations_are_whole_nanoseconds() -> None:
    codec = GenerateCodec()
    call = codec.parse(BODY, id="a", now=5.0)
    end = Finished("length", 7, 3, prefill_seconds=0.5, decode_seconds=0.25)
    stream = codec.encoder(call).feed([Started(7, wait_seconds=1.5), end], 8.0)
    record = json.loads(stream)
    assert record["total_duration"] == 3_000_000_000
    assert record["load_duration"] == 1_500_000_000
    assert (record["prompt_eval_duration"], record["eval_duration"]) == (500_000_000, 250_000_000)
    assert (record["prompt_eval_count"], record["eval_count"]) == (7, 3)
    assert (record["done_reason"], record["response"], record["done"]) == ("length", "", True)


def test_dates_follow_the_clock_within_and_across_seconds() -> None:
    codec = ChatCodec()
    call = codec.parse({"model": "m", "messages": [{"role": "user"}]}, id="a", now=0.0)
    encoder = codec.encoder(call)
    times = (0.0, 0.25, 0.999999, 1.5, 1_700_000_000.125, 0.5)
    dates = [json.loads(encoder.feed([TextDelta("x")], now))["created_at"] for now in times]
    assert dates == [
        "1970-01-01T00:00:00.000000Z",
        "1970-01-01T00:00:00.250000Z",
        "1970-01-01T00:00:00.999999Z",
        "1970-01-01T00:00:01.500000Z",
        "2023-11-14T22:13:20.125000Z",
        "1970-01-01T00:00:00.500000Z",
    ]


def test_records_of_one_moment_have_one_date_whatever_they_hold() -> None:
    codec = ChatCodec()
    call = codec.parse({"model": "m", "messages": [{"role": "user"}]}, id="a", now=0.0)
    burst: Burst = [ReasoningDelta("x"), TextDelta("x"), Finished("stop", 1, 1)]
    records = codec.encoder(call).feed(burst, 1_700_000_000.1234567).splitlines()
    dates = {json.loads(record)["created_at"] for record in records}
    assert dates == {"2023-11-14T22:13:20.123456Z"}


def test_a_name_that_looks_like_json_stays_a_name() -> None:
    codec = GenerateCodec()
    name = '","created_at":""}\n""'
    encoder = codec.encoder(codec.parse(BODY | {"model": name}, id="a", now=0.0))
    record = json.loads(encoder.feed([TextDelta("x")], 1.0))
    assert (record["model"], record["response"], record["done"]) == (name, "x", False)


def test_every_line_is_one_record_and_none_is_blank() -> None:
    codec = GenerateCodec()
    encoder = codec.encoder(codec.parse(BODY, id="a", now=0.0))
    texts = ["\n", "\r\n\n", "", "\u2028", "\u2029", "я\u0085", "\x0b\x0c\x1c\x1d\x1e"]
    stream = encoder.feed([Started(1), *map(TextDelta, texts), Finished("stop", 1, 7)], 1.0)
    assert stream.endswith(b"\n")
    lines = stream.decode().splitlines()
    assert [json.loads(line)["response"] for line in lines] == [*texts, ""]
    assert codec.heartbeat == b""


def test_an_exchange_to_go_on_from_is_told_with_the_end() -> None:
    codec = GenerateCodec()
    call = codec.parse(BODY, id="a", now=0.0)
    end = Finished("stop", 1, 1, context=(7, 8))
    assert codec.render(call, [Completion(finished=end)], 1.0)["context"] == (7, 8)
    assert json.loads(codec.encoder(call).feed([end], 1.0))["context"] == [7, 8]
    assert "context" not in codec.render(call, [Completion(finished=Finished("stop", 1, 1))], 1.0)


def test_a_prompt_that_is_only_rendered() -> None:
    for codec in (GenerateCodec(), ChatCodec()):
        body = BODY | {"messages": [{"role": "user"}], "_debug_render_only": True}
        call = codec.parse(body, id="a", now=0.0)
        shown = codec.render(call, [Completion(text="<|im_start|>x")], 1.0)
        assert shown["_debug_info"] == {"rendered_template": "<|im_start|>x", "image_count": 0}
        assert shown["done"] is False
