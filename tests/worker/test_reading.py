"""Vectors and scores of real models: what they are, and that nothing else changes them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from msgspec import structs

from mlxd.core.request import Message, Sampling
from mlxd.ipc.messages import Echoed, Ended, Generate, Output, Resume, Text, Vector, unpacked
from mlxd.worker import reading
from mlxd.worker.backbone import backbone_of
from mlxd.worker.pooling import Pool
from mlxd.worker.reading import chunk_of
from tests.support.model_maker import HYBRID, MOE, SLIDING, UNMERGEABLE, Shape
from tests.worker.bench import Bench, Heard
from tests.worker.conftest import MakeModel

pytestmark = pytest.mark.mlx

END = 0
"""The token that ends an answer of these models."""
LONG = "server Сервер token 模型 stream отвечает fox 请求 dog 😀 " * 30
KINDS: dict[str, tuple[Shape, dict[str, Any]]] = {
    "full": (Shape(spread=3.0), {}),
    "sliding": (replace(SLIDING, spread=3.0), {}),
    "hybrid": (replace(HYBRID, spread=3.0), {}),
    "moe": (replace(MOE, spread=3.0), {}),
    "serial": (replace(UNMERGEABLE, spread=3.0), {}),
    "half": (Shape(spread=3.0, dtype="bfloat16"), {}),
}
BenchOf = Callable[[str], Bench]


def slow(*kinds: str) -> list[Any]:
    """Of these, what is the same for all is shown by the others."""
    return [pytest.param(kind, marks=pytest.mark.slow) for kind in kinds]


@pytest.fixture(scope="module")
def bench_of(model_of: MakeModel) -> BenchOf:
    made: dict[str, Bench] = {}

    def bench_of(name: str) -> Bench:
        if name not in made:
            shape, launch = KINDS[name]
            made[name] = Bench(model_of(shape), **launch)
        return made[name]

    return bench_of


@pytest.fixture(scope="module")
def bench(bench_of: BenchOf) -> Bench:
    return bench_of("full")


def model_in(bench: Bench) -> Any:
    reader: Any = bench.loop._readings._reader
    return reader._model


def vector_of(heard: Heard) -> bytes:
    assert heard.refused is None, heard.refused
    (vector,) = [piece for piece in heard.pieces if isinstance(piece, Vector)]
    return vector.values


def numbers(vector: bytes) -> Any:
    return np.frombuffer(vector, "<f4")


def embed(bench: Bench, text: str = LONG, **more: Any) -> Heard:
    (heard,) = bench.run([bench.message(want="embedding", text=text, **more)])
    return heard


def texts(count: int) -> list[str]:
    return [LONG[n : n + 10 * n + 1] for n in range(count)]


# -- vectors


@pytest.mark.parametrize("kind", ["full", "hybrid", *slow("sliding", "moe", "serial", "half")])
def test_a_vector_is_the_mean_of_the_hidden_states(
    bench_of: BenchOf, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = bench_of(kind)
    monkeypatch.setattr(reading, "MOST_TOKENS", 64)
    heard = embed(bench)
    assert (heard.started, heard.begun) == (1, 1)
    tokens = unpacked(heard.prompt)
    assert len(tokens) > 4 * 64
    model = model_in(bench)
    part = model.language_model if kind in ("serial", "hybrid") else model
    states = part.model(mx.array([tokens])).astype(mx.float32)
    wanted = np.array(states[0].mean(axis=0))
    found = numbers(vector_of(heard))
    tolerance = 1e-2 if kind == "half" else 1e-4
    assert np.allclose(found, wanted, atol=tolerance * np.abs(wanted).max())
    assert heard.ended.prompt_tokens == len(tokens)
    assert heard.ended.prefill_seconds > 0


def test_a_vector_is_the_same_bits_whatever_else_runs(bench: Bench) -> None:
    wanted = vector_of(embed(bench))
    others = [bench.message(want="embedding", text=text) for text in texts(32)]
    streams = [bench.message(text=text + "x", max_tokens=30) for text in texts(8)]
    asked = bench.message(want="embedding", text=LONG)
    heard = bench.run([*streams, *others[:16], asked, *others[16:]])
    assert vector_of(heard[24]) == wanted
    alone = [vector_of(embed(bench, text)) for text in texts(32)[::8]]
    assert [vector_of(one) for one in [*heard[8:24], *heard[25:]][::8]] == alone


def test_running_streams_go_on_between_two_chunks(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader: Any = bench.loop._readings._reader
    monkeypatch.setitem(reader.__dict__, "_chunk", 16)
    (alone,) = bench.run([bench.message(text="fox", max_tokens=60)])
    stream = bench.message(text="fox", max_tokens=60)
    beside, heard = bench.run([stream, bench.message(want="embedding", text=LONG)])
    assert vector_of(heard)
    outputs = [message for message in bench.wire.sent if isinstance(message, Output)]
    vectors = [any(isinstance(one, Vector) for one in message.pieces) for message in outputs]
    read = vectors.index(True)
    told = [taken for message in outputs[:read] for taken in message.taken]
    assert sum(len(taken.tokens) for taken in told) > len(unpacked(heard.prompt)) / 16 - 5
    assert beside.tokens == alone.tokens


def test_another_worker_begins_again_and_makes_the_same(bench: Bench) -> None:
    message = bench.message(want="embedding", text=LONG)
    (whole,) = bench.run([message])
    (again,) = bench.run([bench.resumed(message, whole.prompt, [])])
    assert vector_of(again) == vector_of(whole)


def test_token_ids_are_what_they_stand_for(bench: Bench) -> None:
    heard = embed(bench, "A server answers")
    (by_ids,) = bench.run(
        [bench.message(want="embedding", token_ids=tuple(unpacked(heard.prompt)))]
    )
    assert vector_of(by_ids) == vector_of(heard)


def test_a_folder_says_how_its_vectors_are_made(model_of: MakeModel, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "m"
    shutil.copytree(model_of(Shape(spread=3.0)), folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode": "lasttoken"}')
    bench = Bench(folder)
    heard = embed(bench)
    states = model_in(bench).model(mx.array([unpacked(heard.prompt)])).astype(mx.float32)
    assert np.allclose(numbers(vector_of(heard)), np.array(states[0, -1]), atol=1e-3)
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode": "best"}')
    reader: Any = bench.loop._readings._reader
    reader.__dict__.pop("_means")
    refused = embed(bench).refused
    assert refused is not None
    assert (refused.code, refused.message) == (
        "unsupported",
        "this model does not support embeddings: its pooling is not offered: best",
    )


# -- what is no input


def limited(message: Generate, context: int, max_prompt: int = 1 << 20) -> Generate:
    return structs.replace(message, context=context, max_prompt=max_prompt)


def test_an_input_may_fill_the_context_and_no_more(bench: Bench) -> None:
    tokens = len(unpacked(embed(bench).prompt))
    asked = bench.message(want="embedding", text=LONG)
    (fits,) = bench.run([limited(asked, tokens)])
    assert fits.ended.prompt_tokens == tokens
    (refused,) = bench.run([limited(bench.message(want="embedding", text=LONG), tokens - 1)])
    assert refused.refused is not None
    assert refused.refused.code == "context_exceeded"
    words = f"the input length exceeds the context length ({tokens - 1} tokens)"
    assert refused.refused.message == words


@pytest.mark.parametrize("form", ["text", "token_ids"])
def test_one_that_is_too_long_is_cut_where_that_is_asked(bench: Bench, form: str) -> None:
    tokens = unpacked(embed(bench).prompt)
    given: Any = {"text": LONG} if form == "text" else {"token_ids": tuple(tokens)}
    (cut,) = bench.run([limited(bench.message(want="embedding", truncate=True, **given), 50)])
    assert unpacked(cut.prompt) == tokens[:50]
    (by_policy,) = bench.run(
        [limited(bench.message(want="embedding", truncate=True, **given), 50, 20)]
    )
    assert by_policy.ended.prompt_tokens == 20


def test_an_empty_one_is_refused(bench: Bench) -> None:
    refused = embed(bench, "").refused
    assert refused is not None
    assert (refused.message, refused.param) == ("the input is empty", "input")


def test_numbers_that_overflow_make_no_vector(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pool, "vector", lambda pool: mx.array([1.0, math.inf]))
    refused = embed(bench).refused
    assert refused is not None
    assert (refused.code, refused.param) == ("invalid_request", "input")
    assert "no embedding" in refused.message


def test_a_model_without_a_backbone_says_so(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    reader: Any = bench.loop._readings._reader
    monkeypatch.setattr(reader, "_model", object())
    reader.__dict__.pop("_means", None)
    refused = embed(bench).refused
    reader.__dict__.pop("_means", None)
    assert refused is not None
    assert refused.message == (
        "this model does not support embeddings: its hidden states cannot be had"
    )


def test_logits_are_no_hidden_states(bench: Bench) -> None:
    class Outer:
        model = model_in(bench)
        make_cache = model.make_cache if hasattr(model, "make_cache") else None
        layers = model.layers

    outer: Any = Outer()
    assert backbone_of(outer, 512) is model_in(bench).model
    assert backbone_of(outer, 64) is model_in(bench)


@pytest.mark.parametrize(
    ("weights", "gpu", "tokens"),
    [(0, False, 512), (2**21, False, 512), (2**24, False, 128), (2**31, False, 16),
     (2**40, False, 16), (2**30, True, 512), (2**32, True, 128), (2**34, True, 32)],
)  # fmt: skip
def test_larger_models_are_read_in_shorter_chunks(weights: int, tokens: int, *, gpu: bool) -> None:
    assert chunk_of(weights, gpu=gpu) == tokens


# -- the prompt before the answer


def echoed(heard: Heard) -> Echoed:
    """As one, however many there were."""
    *early, last = [piece for piece in heard.pieces if isinstance(piece, Echoed)]
    assert all(piece.more for piece in early)
    assert not last.more
    return structs.replace(last, logprobs=[e for one in (*early, last) for e in one.logprobs])


def test_a_prompt_is_told_before_its_answer(bench: Bench) -> None:
    asked: dict[str, Any] = {"text": "A server answers", "max_tokens": 5}
    plain, told = bench.run([bench.message(**asked), bench.message(**asked, echo=True)])
    assert told.pieces[0] == Echoed(told.ended.id, "A server answers")
    assert told.tokens == plain.tokens


@pytest.mark.parametrize("kind", ["full", *slow("hybrid", "serial")])
def test_its_tokens_are_scored_by_those_before_them(
    bench_of: BenchOf, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = bench_of(kind)
    monkeypatch.setattr(reading, "MOST_SCORES", 512 * 32)
    monkeypatch.setattr(reading, "MOST_TOLD", 256)
    asked: dict[str, Any] = {"text": LONG, "max_tokens": 5, "logprobs": 2}
    plain, told = bench.run([bench.message(**asked), bench.message(**asked, echo=True)])
    tokens = unpacked(told.prompt)
    entries = echoed(told).logprobs
    assert "".join(entry.token for entry in entries) != ""
    assert b"".join(entry.raw for entry in entries).decode() == LONG
    logits = model_in(bench)(mx.array([tokens]))[0].astype(mx.float32)
    wanted = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
    assert math.isnan(entries[0].logprob)
    assert entries[0].top == []
    for n, entry in enumerate(entries[1:]):
        assert entry.logprob == pytest.approx(wanted[n, tokens[n + 1]], abs=1e-3)
        assert entry.top[0][2] == pytest.approx(wanted[n].max(), abs=1e-3)
        assert len(entry.top) == 2
    assert told.tokens == plain.tokens
    assert told.started >= 1
    lengths = [len(one.logprobs) for one in told.pieces if isinstance(one, Echoed)]
    assert max(lengths) == 256 // 3
    sent = [message for message in bench.wire.sent if isinstance(message, Output)]
    assert max(sum(isinstance(p, Echoed) for p in message.pieces) for message in sent) == 1


@pytest.mark.parametrize("logprobs", [None, 0])
def test_no_answer_is_wanted(bench: Bench, logprobs: int | None) -> None:
    (heard,) = bench.run(
        [bench.message(text="A server", max_tokens=0, echo=True, logprobs=logprobs)]
    )
    first, ended = heard.pieces
    assert isinstance(first, Echoed)
    assert isinstance(ended, Ended)
    assert (first.text, ended.reason, ended.completion_tokens) == ("A server", "length", 0)
    assert bool(first.logprobs) == (logprobs is not None)


def test_without_an_echo_an_answer_has_a_token(bench: Bench) -> None:
    (heard,) = bench.run([bench.message(text="A server", max_tokens=0)])
    assert heard.refused is not None
    assert heard.refused.message == "max_tokens must be at least 1"


@pytest.mark.parametrize("logprobs", [None, 1])
def test_another_worker_tells_the_prompt_only_if_none_has(
    bench: Bench, logprobs: int | None
) -> None:
    message = bench.message(text="A server", max_tokens=6, echo=True, logprobs=logprobs)
    (whole,) = bench.run([message])
    untold, told = (
        structs.replace(message, id=message.id + more, resume=Resume(whole.prompt, b"", is_told))
        for more, is_told in ((1000, False), (1001, True))
    )
    again, rest = bench.run([untold, told])
    assert echoed(again).text == echoed(whole).text
    assert [entry.raw for entry in echoed(again).logprobs] == [
        entry.raw for entry in echoed(whole).logprobs
    ]
    assert not [piece for piece in rest.pieces if isinstance(piece, Echoed)]
    assert again.tokens == rest.tokens == whole.tokens


@pytest.mark.parametrize("kind", ["full", *slow("serial")])
@pytest.mark.parametrize(("stream", "before"), [(False, 0), (True, 0), (False, 2)])
def test_behind_an_echo_the_token_that_ends_the_answer_is_scored_too(
    bench_of: BenchOf, kind: str, before: int, *, stream: bool
) -> None:
    bench = bench_of(kind)
    asked: dict[str, Any] = {
        "text": "A server",
        "max_tokens": 5,
        "min_tokens": before,
        "stream": stream,
        "logprobs": 1,
        "sampling": Sampling(temperature=0.0, logit_bias=((END, 1000.0),)),
    }
    plain, told = bench.run([bench.message(**asked), bench.message(**asked, echo=True)])
    assert told.ended.reason == "stop"
    assert len(told.tokens) == before + 1
    assert told.tokens[-1] == END
    said = [piece for piece in told.pieces if isinstance(piece, Text)]
    scores = [score for piece in said for score in piece.logprobs]
    assert len(scores) == before + 1
    assert scores[-1].token == "<|im_end|>"
    assert scores[-1].logprob <= 0
    without = [piece for piece in plain.pieces if isinstance(piece, Text)]
    assert sum(len(piece.logprobs) for piece in without) == before
    assert "".join(piece.text for piece in said) == "".join(piece.text for piece in without)


def test_token_ids_and_conversations_are_told_as_they_read(bench: Bench) -> None:
    (first,) = bench.run([bench.message(text="A server <|im_end|>", max_tokens=1)])
    by_ids, conversation = bench.run(
        [
            bench.message(token_ids=tuple(unpacked(first.prompt)), max_tokens=1, echo=True),
            bench.message(messages=(Message("user", "fox"),), max_tokens=1, echo=True),
        ]
    )
    assert echoed(by_ids).text == "A server <|im_end|>"
    assert echoed(conversation).text == ("<|im_start|>user\nfox<|im_end|>\n<|im_start|>assistant\n")


def test_sampling_with_an_echo_draws_the_same(bench: Bench) -> None:
    asked: dict[str, Any] = {
        "text": LONG[:40],
        "max_tokens": 8,
        "sampling": Sampling(temperature=0.9, seed=3),
    }
    plain, told = bench.run([bench.message(**asked), bench.message(**asked, echo=True, logprobs=1)])
    assert told.tokens == plain.tokens
