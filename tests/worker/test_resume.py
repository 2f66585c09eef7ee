"""An answer that was cut anywhere and is continued is the answer that was never cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from msgspec import structs

from mlxd.core.request import Message, Sampling, ToolChoice
from mlxd.ipc.messages import Generate, Output, Resume, Text, packed, unpacked
from tests.support.model_maker import (
    HYBRID,
    MOE,
    SLIDING,
    THINKING,
    TOOL_TEMPLATE,
    TOOLS,
    UNMERGEABLE,
    Shape,
)
from tests.worker.bench import Bench, Heard, answer_of
from tests.worker.conftest import MakeModel

pytestmark = pytest.mark.mlx

ASKED = (Message("user", "server Сервер token 模型 stream отвечает fox 请求 dog 😀" * 2),)
DRAWN = Sampling(
    temperature=0.9, top_p=0.95, top_k=80, min_p=0.01, seed=7, logit_bias=((0, -99.0),)
)
"""Never the end token."""
PENALISED = replace(
    DRAWN,
    repeat_penalty=1.3,
    repeat_last_n=20,
    presence_penalty=0.5,
    frequency_penalty=0.25,
    logit_bias=((100, 2.0), (0, -99.0)),
)
HOT = Sampling(temperature=1.4, seed=3)
ADD = {"type": "function", "function": {"name": "add", "parameters": {}}}
LONGER = {
    "type": "object",
    "properties": {
        "name": {"enum": ["Съешь ещё этих мягких булок", "天地玄黃 宇宙洪荒"]},
        "ok": {"type": "boolean"},
        "n": {"enum": [1, 22, 333]},
    },
    "required": ["name", "ok", "n"],
    "additionalProperties": False,
}
CACHES: dict[str, tuple[Shape, dict[str, Any]]] = {
    "full": (Shape(spread=3.0), {}),
    "sliding": (replace(SLIDING, spread=3.0), {}),
    "hybrid": (replace(HYBRID, spread=3.0), {}),
    "moe": (replace(MOE, spread=3.0), {}),
    "serial": (replace(UNMERGEABLE, spread=3.0), {}),
    "quantised": (Shape(hidden=256, spread=3.0), {"kv_bits": 8}),
}
MARKED = Shape(spread=3.0, markers=THINKING + TOOLS, template=TOOL_TEMPLATE)
BenchOf = Callable[[str], Bench]


@pytest.fixture(scope="module")
def bench_of(model_of: MakeModel) -> BenchOf:
    made: dict[str, Bench] = {}

    def bench_of(name: str) -> Bench:
        if name not in made:
            shape, launch = CACHES.get(name, (MARKED, {}))
            made[name] = Bench(model_of(shape), **launch)
        return made[name]

    return bench_of


def cuts(heard: Heard) -> list[tuple[int, int]]:
    """After how many pieces and tokens a worker's death can leave the answer."""
    return sorted({known for known in heard.frames if known[1] < len(heard.tokens)})


def check(bench: Bench, message: Generate, *, most: int = 8) -> Heard:
    """Cut one answer everywhere, or at `most` places, and continue each; returns the whole one."""
    (whole,) = bench.run([message])
    assert whole.refused is None
    expected = answer_of(whole.pieces)
    assert len(whole.tokens) == whole.ended.completion_tokens
    places = cuts(whole)
    places = places[:: -(-len(places) // most)]
    asked = [bench.resumed(message, whole.prompt, whole.tokens[:n]) for _, n in places]
    for (pieces, n), again in zip(places, bench.run(asked), strict=True):
        assert again.refused is None
        assert (again.started, again.begun) == (1, 1)
        assert again.prompt == whole.prompt
        got = answer_of([*whole.pieces[:pieces], *again.pieces])
        assert (got.said, got.end) == (expected.said, expected.end), f"cut behind {n} tokens"
        assert whole.tokens[:n] + again.tokens == whole.tokens
        assert [score.raw for score in got.scores] == [score.raw for score in expected.scores]
        for mine, theirs in zip(got.scores, expected.scores, strict=True):
            assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-2)
    return whole


def varied(heard: Heard) -> bool:
    return len(set(heard.tokens)) >= 0.3 * len(heard.tokens)


def long(*values: object) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "drawn": {"sampling": DRAWN},
    "penalised": {"sampling": PENALISED, "logprobs": 2},
    "formatted": {"sampling": HOT, "format": LONGER, "max_tokens": 100},
}


@pytest.mark.parametrize(
    ("cache", "kind"),
    [
        ("full", "drawn"),
        ("full", "formatted"),
        *[(cache, "penalised") for cache in CACHES if cache != "moe"],
        long("moe", "penalised"),
        *[long(cache, "formatted") for cache in ("sliding", "serial")],
        *[long(cache, "greedy") for cache in CACHES],
    ],
)
def test_a_stream_goes_on_wherever_it_was_cut(bench_of: BenchOf, cache: str, kind: str) -> None:
    bench = bench_of(cache)
    asked: dict[str, Any] = {"messages": ASKED, "max_tokens": 32} | KINDS[kind]
    most = 1000 if (cache, kind) == ("full", "penalised") else 6
    whole = check(bench, bench.message(**asked), most=most)
    assert varied(whole)
    assert len(cuts(whole)) > 15
    assert whole.ended.reason == ("stop" if kind == "formatted" else "length")


@pytest.mark.parametrize(
    ("logprobs", "think"), [(1, True), (None, False), long(1, False), long(None, True)]
)
def test_think_blocks_go_on(bench_of: BenchOf, think: bool, logprobs: int | None) -> None:
    bench = bench_of("marked")
    marks = markers(bench)
    bias = ((marks["</think>"], 30.0), (marks["<think>"], 33.0))
    drawn = replace(HOT, logit_bias=bias)
    asked: dict[str, Any] = {
        "messages": ASKED,
        "max_tokens": 60,
        "logprobs": logprobs,
        "think": think,
    }
    whole = check(bench, bench.message(sampling=drawn, **asked))
    assert {kind for kind, _ in answer_of(whole.pieces).said} == {"Text", "Reasoning"}


@pytest.mark.parametrize(
    ("logprobs", "stream"), [(1, True), (None, False), long(1, False), long(None, True)]
)
def test_stop_strings_half_matched_go_on(
    bench_of: BenchOf, logprobs: int | None, stream: bool
) -> None:
    bench = bench_of("full")
    asked: dict[str, Any] = {"messages": ASKED, "sampling": DRAWN, "max_tokens": 60}
    (plain,) = bench.run([bench.message(**asked)])
    text = answer_of(plain.pieces).said[0][1]
    stop = (text[50:58], text[20:26] + "\x00", text[10:18] + "\x01", "never")
    message = bench.message(**asked, logprobs=logprobs, stop=stop, stream=stream)
    whole = check(bench, message)
    assert whole.ended.stop_string == text[50:58]


def test_a_formatted_answer_behind_a_think_block_goes_on(bench_of: BenchOf) -> None:
    bench = bench_of("marked")
    drawn = replace(HOT, logit_bias=((markers(bench)["</think>"], 5.5),))
    asked: dict[str, Any] = {"messages": ASKED, "max_tokens": 90, "format": LONGER, "think": True}
    whole = check(bench, bench.message(sampling=drawn, **asked))
    assert [kind for kind, _ in answer_of(whole.pieces).said] == ["Reasoning", "Text"]


def test_calls_that_are_forced_go_on(bench_of: BenchOf) -> None:
    parameters = {"type": "object", "properties": {"a": LONGER}, "required": ["a"]}
    tool = {"type": "function", "function": {"name": "add", "parameters": parameters}}
    asked: dict[str, Any] = {"messages": ASKED, "max_tokens": 200, "think": False}
    choice = ToolChoice(required=True, parallel=False)
    bench = bench_of("marked")
    message = bench.message(sampling=HOT, tools=(tool,), tool_choice=choice, **asked)
    whole = check(bench, message, most=4)
    assert [kind for kind, _ in answer_of(whole.pieces).said] == ["add"]


@pytest.mark.parametrize(
    ("logprobs", "cache"),
    [(1, "full"), *[long(*one) for one in ((None, "quantised"), (None, "full"), (1, "quantised"))]],
)
def test_a_whole_answer_goes_on_behind_what_was_sent(
    bench_of: BenchOf, cache: str, logprobs: int | None
) -> None:
    bench = bench_of(cache)
    asked: dict[str, Any] = {
        "messages": ASKED,
        "sampling": DRAWN,
        "max_tokens": 140,
        "logprobs": logprobs,
    }
    whole = check(bench, bench.message(**asked, stream=False), most=3)
    assert [n for _, n in cuts(whole)] == [0, 64, 128]


def markers(bench: Bench) -> dict[str, int]:
    tokenizer: Any = bench.intake.preparation.checks.prompter._tokenizer  # type: ignore[union-attr]
    return {mark: tokenizer.convert_tokens_to_ids(mark) for mark in THINKING + TOOLS}


CALL = '<tool_call>{"name": "add", "arguments": {"a": "Сервер"}}</tool_call>'


@pytest.mark.parametrize(
    ("logprobs", "stream"), [(1, True), (None, False), long(1, False), long(None, True)]
)
def test_tool_calls_half_said_go_on(
    bench_of: BenchOf, logprobs: int | None, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model says them since its sampler does."""
    bench = bench_of("marked")
    text = f"<think>a {CALL} b</think>so{CALL}{CALL} 😀 <tool_call>no</tool_call>x" + CALL * 2
    recite(bench, text, monkeypatch)
    asked: dict[str, Any] = {
        "messages": ASKED,
        "max_tokens": 400,
        "tools": (ADD,),
        "stop": ("</tool_call>z",),
    }
    message = bench.message(**asked, sampling=HOT, logprobs=logprobs, stream=stream)
    whole = check(bench, message)
    said = answer_of(whole.pieces).said
    assert [kind for kind, _ in said].count("add") == 5
    assert ("Text", " 😀 <tool_call>no</tool_call>x") in said


def recite(bench: Bench, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its seeded sampler now says a text: the n-th token is the n-th of the text."""
    import mlx.core as mx

    from mlxd.worker.sampling import Draw

    tokenizer: Any = bench.intake.preparation.checks.prompter._tokenizer  # type: ignore[union-attr]
    tokens = [*tokenizer.encode(text, add_special_tokens=False), *tokenizer.eos_token_ids]

    def said(draw: Draw, logits: mx.array) -> mx.array:
        token = tokens[min(draw.drawn, len(tokens) - 1)]
        draw.drawn += 1
        return mx.array([token])

    monkeypatch.setattr(Draw, "__call__", said)


def test_a_score_is_sent_with_the_call_it_ended_in(model_of: MakeModel) -> None:
    """A token that ends one call and begins the next leaves none behind."""
    from mlx_lm.tokenizer_utils import load

    from mlxd.ipc.messages import Logprob
    from mlxd.worker.answer import Answer
    from mlxd.worker.markup import Markup
    from mlxd.worker.stops import StopStrings

    parts = [CALL[:20], CALL[20:] + CALL[:5], CALL[5:]]

    class Pieces:
        def add(self, token: int) -> str:
            return parts[token]

        def finish(self) -> str:
            return ""

    class Scores:
        def score(self, token: int, row: Any) -> Logprob:
            return Logprob(parts[token], parts[token].encode(), -1.0)

    markup = Markup(load(model_of(MARKED)))
    scorer: Any = Scores()
    separator = markup.separator((ADD,), reasoning=False)
    answer = Answer(1, Pieces(), separator, StopStrings(()), scorer)
    settled = []
    for token in range(3):
        out: list[Any] = []
        answer.take(token, "row", out)
        settled.append((bool(out), answer.settled))
    assert settled == [(False, False), (True, True), (True, True)]


@pytest.mark.parametrize("stream", [True, False])
def test_tokens_are_told_as_far_as_their_pieces_are(
    stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drafts give several in one step, of which the last may wait for what follows."""
    from mlxd.core.request import GenerationRequest
    from mlxd.ipc.messages import Logprob, Piece, Text
    from mlxd.worker import running
    from mlxd.worker.answer import Answer
    from mlxd.worker.job import Job
    from mlxd.worker.running import Running
    from mlxd.worker.sampling import Guard
    from mlxd.worker.stops import StopStrings

    class Letters:
        def add(self, token: int) -> str:
            return chr(token)

        def finish(self) -> str:
            return ""

    class Scores:
        def score(self, token: int, row: Any) -> Logprob:
            return Logprob(chr(token), bytes([token]), -1.0)

    @dataclass
    class Said:
        token: int
        uid: int = 0
        logprobs: str = "row"
        finish_reason: str | None = None

    monkeypatch.setattr(running, "WHOLE_EVERY", 1)
    request = GenerationRequest(model="m", text="x", stream=stream, logprobs=0)
    stops = StopStrings(("xy",))
    job = Job(1, request, Sampling(), [5], 9, False, stops)
    scorer: Any = Scores()
    run = Running(job, Answer(1, Letters(), None, stops, scorer), Guard())
    told: list[tuple[bytes, str]] = []
    for step in (b"ax", b"b"):
        out: list[Piece] = []
        assert not any(run.take(Said(token), 1.0, out) for token in step)
        known = run.tell()
        assert known is not None
        said = "".join(piece.text for piece in out if isinstance(piece, Text))
        told.append((bytes(known.tokens), said))
    assert told == [(b"a", "a"), (b"xb", "xb")]
    assert run.tell() is None


def test_the_end_of_what_was_allowed_is_said_without_the_engine(bench_of: BenchOf) -> None:
    bench = bench_of("full")
    message = bench.message(messages=ASKED, max_tokens=20, stop=("never",))
    (whole,) = bench.run([message])
    steps = bench.intake.progress.step
    asked = [
        bench.resumed(structs.replace(message, max_output=most), whole.prompt, whole.tokens)
        for most in (20, 5)
    ]
    for again in bench.run(asked):
        assert again.ended.reason == "length"
        assert again.ended.completion_tokens == 20
        assert again.ended.prompt_tokens == whole.ended.prompt_tokens
        assert not [piece for piece in again.pieces if isinstance(piece, Text)]
    assert bench.intake.progress.step == steps


@pytest.mark.parametrize("cache", ["full", "serial"])
def test_tokens_behind_an_end_or_a_stop_string_break_nothing(bench_of: BenchOf, cache: str) -> None:
    bench = bench_of(cache)
    (whole,) = bench.run([bench.message(messages=ASKED, max_tokens=9)])
    text = answer_of(whole.pieces).said[0][1]
    stopped = bench.message(messages=ASKED, max_tokens=20, stop=(text[:3],))
    formatted = bench.message(messages=ASKED, max_tokens=20, format="json")
    asked = [
        bench.resumed(stopped, whole.prompt, whole.tokens),
        bench.resumed(stopped, whole.prompt, [*whole.tokens, 0]),
        bench.resumed(formatted, whole.prompt, [0]),
        bench.resumed(formatted, whole.prompt, whole.tokens),
    ]
    heard = bench.run(asked)
    assert heard[0].ended.stop_string == text[:3]
    assert answer_of(heard[0].pieces).said == []
    assert all(one.refused or one.ended for one in heard)
    assert bench.run([bench.message(messages=ASKED, max_tokens=9)])[0].tokens == whole.tokens


WRONG = [
    (Resume(b"123", b""), "resume"),
    (Resume(packed([5, 6]), b"12345"), "resume"),
    (Resume(b"", packed([5])), "prompt"),
    (Resume(packed([512]), b""), "prompt"),
    (Resume(packed([5]), packed([2**32 - 1])), "resume"),
    (Resume(packed([5] * 4096), b""), None),
]


@pytest.mark.parametrize(("resume", "param"), WRONG)
def test_what_cannot_be_continued_is_refused(
    bench_of: BenchOf, resume: Resume, param: str | None
) -> None:
    bench = bench_of("full")
    message = bench.message(text="x", max_tokens=3)
    (heard,) = bench.run([structs.replace(message, resume=resume)])
    assert heard.refused is not None
    assert heard.refused.param == param
    assert heard.refused.code == ("invalid_request" if param else "context_exceeded")


def test_a_prompt_is_not_rendered_again(bench_of: BenchOf) -> None:
    bench = bench_of("full")
    prompt = packed([7, 8, 9])
    (heard,) = bench.run([bench.resumed(bench.message(text="x", max_tokens=3), prompt, [])])
    assert unpacked(heard.prompt) == [7, 8, 9]
    assert heard.ended.prompt_tokens == 3


def test_tokens_travel_with_their_pieces_in_no_frame_of_their_own(bench_of: BenchOf) -> None:
    bench = bench_of("full")
    message = bench.message(messages=ASKED, max_tokens=40)
    (heard,) = bench.run([message])
    outputs = [sent for sent in bench.wire.sent if isinstance(sent, Output) and sent.taken]
    assert len(outputs) > 20
    assert all(sent.pieces or sent.begun for sent in outputs)
    assert heard.begun == 1


def test_memory_is_claimed_for_prompt_and_answer(model_of: MakeModel, monkeypatch: Any) -> None:
    from mlxd.worker.budget import Ledger
    from mlxd.worker.claim import Claim

    claims: list[Claim] = []
    ask = Ledger.ask

    def noting(ledger: Ledger, claim: Claim) -> None:
        claims.append(claim)
        ask(ledger, claim)

    monkeypatch.setattr(Ledger, "ask", noting)
    bench = Bench(model_of(CACHES["full"][0]))
    message = bench.message(text="x", max_tokens=30)
    bench.run([bench.resumed(message, packed([5] * 10), [6] * 20)])
    assert [(claim.prompt, claim.max_tokens) for claim in claims] == [(30, 10)]
