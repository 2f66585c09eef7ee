"""A worker as the daemon meets it: a process and a socket."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from mlxd.core.request import Message, Sampling
from mlxd.ipc.messages import Cancel, Ended, LoadFailed, Ping, Ready, Shutdown, encode
from mlxd.worker.machine import has_reference_blas
from tests.support.model_maker import HYBRID, MOE, SLIDING, Shape, make_model
from tests.support.worker_process import GREEDY, Told, WorkerProcess
from tests.worker.conftest import MakeModel

pytestmark = pytest.mark.mlx

SEEDED = Sampling(temperature=0.9, top_p=0.95, top_k=80, min_p=0.01, seed=7, repeat_penalty=1.1)
WORDS = ["server", "token", "stream", "Сервер", "отвечает", "模型", "请求", "fox", "dog", "😀"]


def asked(n: int, words: int = 20) -> tuple[Message, ...]:
    draw = random.Random(n)
    return (Message("user", " ".join(draw.choices(WORDS, k=words))),)


def distinct(told: Told) -> float:
    """Of the tokens, how many are not repetitions."""
    tokens = [entry.raw for entry in told.logprobs]
    return len(set(tokens)) / len(tokens)


class Crowd:
    """Requests that join and leave one worker's batch at random."""

    def __init__(self, worker: WorkerProcess, count: int, seed: int) -> None:
        self.worker = worker
        draw = random.Random(seed)
        self.asked: list[dict[str, Any]] = [
            {
                "messages": asked(n, draw.choice([2, 10, 40, 90])),
                "max_tokens": draw.randint(8, 60),
                "sampling": replace(SEEDED, seed=n) if n % 4 == 3 else GREEDY,
                "stream": n % 3 != 0,
            }
            for n in range(count)
        ]
        self.draw = draw

    def alone(self) -> list[str]:
        return [self.worker.run(**request).text for request in self.asked]

    def together(self) -> list[str]:
        ids = []
        for request in self.asked:
            ids.append(self.worker.generate(**request))
            for _ in range(self.draw.randint(0, 3)):
                if not all(self.worker.told[id].over for id in ids):
                    self.worker.receive()
        self.worker.until(lambda: all(self.worker.told[id].over for id in ids))
        return [self.worker.told[id].text for id in ids]


@pytest.mark.slow
def test_sixteen_requests_joining_and_leaving_get_what_each_gets_alone(worker):
    crowd = Crowd(worker, 16, seed=1)
    alone = crowd.alone()
    assert crowd.together() == alone
    assert len(set(alone)) == 16


def test_the_texts_compared_do_not_repeat_themselves(worker):
    for n in range(3):
        told = worker.run(messages=asked(n), max_tokens=60, logprobs=0)
        assert distinct(told) >= 0.3


@pytest.mark.parametrize("shape", [SLIDING, MOE, HYBRID], ids=["sliding", "moe", "hybrid"])
@pytest.mark.slow
def test_every_kind_of_cache_is_batched_exactly(model_of: MakeModel, shape: Shape):
    worker = WorkerProcess(model_of(replace(shape, spread=3.0)))
    try:
        crowd = Crowd(worker, 8, seed=2)
        alone = crowd.alone()
        assert crowd.together() == alone
    finally:
        worker.close()


@pytest.mark.slow
def test_a_gap_is_filled_until_a_mark_says_that_it_is_full(model_of: MakeModel):
    marks = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>")
    worker = WorkerProcess(model_of(Shape(spread=3.0, markers=marks)))
    try:
        texts = ("def f(", "return 1")
        counts = [_ended(worker.run(text=text, max_tokens=1)).prompt_tokens for text in texts]
        filled = worker.run(text="def f(", suffix="return 1", max_tokens=20)
        assert _ended(filled).prompt_tokens == sum(counts) + 3
        pad = Sampling(temperature=0.0, logit_bias=((511, 1000.0),))
        full = worker.run(text="def f(", suffix="return 1", max_tokens=20, sampling=pad)
        assert (full.text, _ended(full).reason) == ("", "stop")
        plain = worker.run(text="def f(", max_tokens=3, sampling=pad)
        assert _ended(plain).reason == "length"
    finally:
        worker.close()


def _ended(told: Told) -> Ended:
    assert told.ended is not None
    return told.ended


HUGE = "The quick brown fox jumps " * 150_000
"""Takes seconds to tokenise."""

BAD: list[dict[str, Any]] = [
    {"token_ids": (1, 512)},
    {"token_ids": (-1,)},
    {"token_ids": ()},
    {"token_ids": (2**62,)},
    {"text": ""},
    {"messages": ()},
    {"text": "x", "sampling": Sampling(logit_bias=((9_999_999, 5.0),))},
    {"text": "x", "sampling": Sampling(logit_bias=((-1, 5.0),))},
    {"text": "x", "sampling": Sampling(temperature=float("nan"))},
    {"text": "x", "max_tokens": 0},
    {"text": "x", "stop": ("fine", "y" * 1001)},
    {"text": "x", "context": 1},
    {"text": "word " * 5000},
    {"text": "word " * 20, "max_prompt": 10},
    {"text": "x", "format": {"type": 5}},
    {"messages": asked(0), "template_options": {"chat_template": "{{ 1 }}"}},
    {"messages": asked(0), "template_options": {"tokenize": False}},
]
ODD: list[dict[str, Any]] = [
    {"sampling": Sampling(temperature=1.0, top_k=10**9)},
    {"sampling": Sampling(temperature=1.0, top_k=-5, top_p=7.0, min_p=-3.0)},
    {"sampling": Sampling(temperature=1.0, min_p=9.0, top_p=0.0)},
    {"sampling": Sampling(temperature=1e-30, seed=-(2**60))},
    {"sampling": Sampling(temperature=1e30)},
    {"sampling": Sampling(repeat_penalty=0.0, repeat_last_n=-1, presence_penalty=1e9)},
    {"sampling": Sampling(repeat_penalty=1e30, repeat_last_n=10**9, frequency_penalty=-1e9)},
    {"sampling": Sampling()},
    {"stop": ("", "never")},
    {"stop": ("y" * 1000,)},
    {"logprobs": 10_000},
    {"logprobs": -4},
]


def test_what_would_break_the_engine_is_refused_beside_running_requests(worker):
    crowd = Crowd(worker, 8, seed=3)
    alone = crowd.alone()
    ids = [worker.generate(**request) for request in crowd.asked]
    bad = [worker.generate(**request) for request in BAD]
    odd = [worker.generate(text="hello", max_tokens=5, **request) for request in ODD]
    worker.until(lambda: all(worker.told[id].over for id in [*ids, *bad, *odd]))
    assert [worker.told[id].text for id in ids] == alone
    for id, request in zip(bad, BAD, strict=True):
        assert worker.told[id].refused is not None, request
    for id, request in zip(odd, ODD, strict=True):
        assert worker.told[id].ended is not None, request


def test_a_prompt_over_the_context_says_by_how_much(worker):
    refused = worker.run(text="word " * 5000).refused
    assert refused is not None
    assert refused.code == "context_exceeded"
    assert "exceeds the model's maximum context length (4096 tokens)" in refused.message


def test_a_prompt_far_over_the_context_is_not_counted(worker):
    for request in ({"text": HUGE}, {"messages": (Message("user", HUGE),)}):
        refused = worker.run(**request).refused
        assert refused is not None
        assert refused.code == "context_exceeded"
        assert refused.message == (
            "input length exceeds the model's maximum context length (4096 tokens)"
        )


def test_a_requests_own_context_limits_prompt_and_answer(worker):
    ended = worker.run(token_ids=(7,) * 20, context=30).ended
    assert ended is not None
    assert ended.completion_tokens == 10
    assert worker.run(token_ids=(7,) * 29, context=30).ended is not None
    refused = worker.run(token_ids=(7,) * 30, context=30).refused
    assert refused is not None
    assert refused.code == "context_exceeded"
    assert "exceeds the model's maximum context length (30 tokens)" in refused.message


def test_a_stop_string_that_is_too_long_is_named(worker):
    refused = worker.run(text="x", stop=("y" * 1001,)).refused
    assert refused is not None
    assert (refused.code, refused.param) == ("invalid_request", "stop")


def test_an_empty_prompt_is_called_empty(worker):
    refused = worker.run(token_ids=()).refused
    assert refused is not None
    assert refused.message == "the prompt is empty"


def test_a_prompt_over_the_policy_names_the_policy(worker):
    refused = worker.run(text="word " * 20, max_prompt=10).refused
    assert refused is not None
    assert refused.code == "context_exceeded"
    assert "limits.tokens.max_prompt" in refused.message


@pytest.mark.parametrize("context", [10, 1 << 20])
def test_a_prompt_over_the_context_of_a_policy_names_that(worker, context):
    key = "clients.tenants.a.max_context"
    refused = worker.run(token_ids=(7,) * 4096, context=context, context_key=key).refused
    assert refused is not None
    assert refused.code == "context_exceeded"
    assert (refused.policy_key == key) == (context == 10)
    assert (key in refused.message) == (context == 10)


@pytest.mark.parametrize(
    ("asked_for", "max_output", "prompt", "expected"),
    [
        (10_000, 30, 20, 30),
        (None, 25, 20, 25),
        pytest.param(10_000, 10_000, 4090, 6, marks=pytest.mark.slow),
        (12, 30, 20, 12),
    ],
)
def test_max_tokens_is_clamped_to_policy_and_context(
    worker, asked_for, max_output, prompt, expected
):
    told = worker.run(
        token_ids=tuple(range(100, 100 + 400)) * (prompt // 400) + (7,) * (prompt % 400),
        max_tokens=asked_for,
        max_output=max_output,
    )
    assert told.ended is not None
    assert told.ended.completion_tokens == expected
    assert told.ended.reason == "length"
    assert told.ended.prompt_tokens == prompt


def test_seeds_reproduce_and_differ(worker):
    def text(seed: int | None) -> str:
        sampling = replace(SEEDED, seed=seed)
        told: Told = worker.run(messages=asked(1), max_tokens=30, sampling=sampling)
        return told.text

    assert text(1) == text(1) != text(2)
    assert text(None) != text(None)


def test_whole_and_streamed_answers_are_the_same_text(worker):
    streamed = worker.run(messages=asked(4), max_tokens=150)
    whole = worker.run(messages=asked(4), max_tokens=150, stream=False)
    assert whole.text == streamed.text
    assert len(whole.pieces) == 3
    assert len(streamed.pieces) > 75


def test_every_token_is_sent_when_it_is_made(worker):
    told = worker.run(messages=asked(5), max_tokens=100, logprobs=0)
    assert len(told.pieces) == 100


def test_counts_and_times_are_measured(worker):
    began = time.monotonic()
    told = worker.run(messages=asked(6), max_tokens=20)
    passed = time.monotonic() - began
    assert told.accepted is not None
    assert told.ended is not None
    assert told.ended.prompt_tokens == told.accepted.prompt_tokens > 20
    assert told.ended.completion_tokens == 20
    assert min(told.ended.prefill_seconds, told.ended.decode_seconds) > 0
    assert told.ended.prefill_seconds + told.ended.decode_seconds <= passed


@pytest.mark.parametrize("width", [1, 3, 12])
def test_a_stop_string_ends_the_text_before_it(worker, width):
    full = worker.run(messages=asked(8), max_tokens=60).text
    stop = full[30 : 30 + width]
    told = worker.run(messages=asked(8), max_tokens=60, stop=("never-there", stop))
    assert told.text == full[: full.index(stop)]
    assert told.ended is not None
    assert (told.ended.reason, told.ended.stop_string) == ("stop", stop)
    assert told.ended.completion_tokens < 60


def test_logprobs_come_for_each_token_and_belong_to_the_text(worker):
    plain = worker.run(messages=asked(9), max_tokens=40)
    told = worker.run(messages=asked(9), max_tokens=40, logprobs=3, stop=("never-there",))
    assert told.text == plain.text
    assert len(told.logprobs) == 40
    raw = b"".join(entry.raw for entry in told.logprobs)
    assert raw.decode("utf-8", "ignore").removeprefix(" ") == told.text
    for entry in told.logprobs:
        assert entry.logprob <= 0
        assert entry.top[0][1:] == (entry.raw, entry.logprob)
        assert [top[2] for top in entry.top] == sorted((t[2] for t in entry.top), reverse=True)


def test_a_request_is_cancelled_while_it_decodes(worker):
    id = worker.generate(messages=asked(1), max_tokens=4000)
    told = worker.told[id]
    worker.until(lambda: len(told.pieces) > 3)
    worker.send(Cancel(id))
    worker.until(lambda: told.over)
    assert told.cancelled
    assert len(told.pieces) < 2000, "long before its end, however seldom this process has its turn"


def test_a_request_is_cancelled_while_it_is_prefilled_or_queued(worker):
    ids = [worker.generate(token_ids=(9,) * 2500, max_tokens=90) for _ in range(12)]
    worker.until(lambda: worker.told[ids[0]].accepted is not None)
    worker.send(*[Cancel(id) for id in ids])
    worker.until(lambda: all(worker.told[id].over for id in ids))
    assert all(worker.told[id].cancelled for id in ids)
    assert all(not worker.told[id].pieces for id in ids)


def test_a_cancel_in_the_same_breath_as_its_request_is_not_lost(worker):
    id = 10_000
    worker.send(worker.message(id, text="hello", max_tokens=3000), Cancel(id))
    worker.until(lambda: worker.told[id].over)
    assert worker.told[id].cancelled


def test_cancelling_what_has_ended_does_nothing(worker):
    id = worker.generate(text="hello", max_tokens=2)
    worker.until(lambda: worker.told[id].over)
    worker.send(Cancel(id), Cancel(77_777))
    assert worker.run(text="hello", max_tokens=2).ended is not None
    assert not worker.told[id].cancelled
    assert 77_777 not in worker.told


@pytest.mark.slow
def test_a_ping_is_answered_while_the_model_computes(worker):
    id = worker.generate(token_ids=(9,) * 2500, max_tokens=50)
    worker.pongs.clear()
    worker.send(Ping())
    worker.until(lambda: bool(worker.pongs))
    worker.until(lambda: worker.told[id].over)
    assert worker.pongs[0].memory.active > 0


def test_an_idle_worker_uses_no_processor_time(worker):
    worker.run(text="hello", max_tokens=2)
    stat = Path(f"/proc/{worker.process.pid}/stat")
    if not stat.exists():
        pytest.skip("needs /proc")

    def ticks() -> int:
        fields = stat.read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    def quiet() -> bool:
        before = ticks()
        time.sleep(1)  # the measurement itself
        return ticks() - before <= 1

    assert any(quiet() for _ in range(5)), "what is left to do after an answer may take a second"
    assert worker.process.poll() is None


def test_json_is_json(worker):
    told = worker.run(
        messages=asked(3),
        max_tokens=200,
        format={
            "type": "object",
            "properties": {"ok": {"type": "boolean"}, "n": {"enum": [1, 2]}},
            "required": ["ok", "n"],
            "additionalProperties": False,
        },
        logprobs=2,
    )
    assert told.ended is not None
    assert told.ended.reason == "stop"
    assert set(json.loads(told.text)) == {"ok", "n"}


def test_a_constrained_request_leaves_its_neighbours_alone(worker):
    alone = worker.run(messages=asked(11), max_tokens=40).text
    other = worker.generate(messages=asked(3), max_tokens=40, format="json")
    assert worker.run(messages=asked(11), max_tokens=40).text == alone
    worker.until(lambda: worker.told[other].over)
    assert worker.told[other].text.lstrip().startswith("{")


def test_thinking_is_separated_and_outside_of_a_format(marked_worker):
    told = marked_worker.run(messages=asked(2), max_tokens=40, think=True)
    assert told.reasoning
    assert not told.text
    told = marked_worker.run(messages=asked(2), max_tokens=40, think=False)
    assert told.text
    told = marked_worker.run(messages=asked(2), max_tokens=40, think=True, format="json")
    assert told.reasoning
    assert marked_worker.first.thinking
    assert marked_worker.first.tools


def test_the_templates_own_words_reach_the_client(model_of: MakeModel):
    shape = Shape(template="{{ raise_exception('roles must alternate') }}")
    worker = WorkerProcess(model_of(shape))
    try:
        refused = worker.run(messages=asked(0)).refused
        assert refused is not None
        assert "roles must alternate" in refused.message
        assert worker.run(text="hello", max_tokens=2).ended is not None
    finally:
        worker.close()


@pytest.mark.slow
def test_one_request_at_a_time_gives_the_same_answers(serial_worker):
    assert isinstance(serial_worker.first, Ready)
    assert not serial_worker.first.batchable
    crowd = Crowd(serial_worker, 6, seed=5)
    for request in crowd.asked:
        request["max_tokens"] = 12
    alone = crowd.alone()
    assert crowd.together() == alone
    assert len(set(alone)) == 6


def test_waiting_for_the_serial_lane_is_no_prefill(serial_worker):
    first = serial_worker.generate(text="hello", max_tokens=150)
    second = serial_worker.generate(text="hello", max_tokens=2)
    told = serial_worker.told
    serial_worker.until(lambda: told[first].over and told[second].over)
    assert told[first].started == told[second].started == 1
    assert told[first].ended is not None
    assert told[second].ended is not None
    assert told[second].ended.prefill_seconds < told[first].ended.decode_seconds


def test_the_serial_lane_cancels_in_prefill_and_in_its_queue(serial_worker):
    first = serial_worker.generate(token_ids=(9,) * 2500, max_tokens=50)
    second = serial_worker.generate(text="hello", max_tokens=2000)
    third = serial_worker.generate(text="hello", max_tokens=3)
    serial_worker.until(lambda: serial_worker.told[second].accepted is not None)
    serial_worker.send(Cancel(second), Cancel(first))
    serial_worker.until(lambda: serial_worker.told[third].over)
    assert serial_worker.told[first].cancelled
    assert not serial_worker.told[first].pieces
    assert serial_worker.told[second].cancelled
    assert serial_worker.told[third].ended is not None


def test_logprobs_stops_and_formats_work_in_the_serial_lane(serial_worker):
    told = serial_worker.run(text="hello", max_tokens=10, logprobs=1)
    assert len(told.logprobs) == 10
    told = serial_worker.run(text="hello", max_tokens=10, format="json")
    assert told.text.lstrip().startswith("{")


def test_a_closed_socket_ends_the_process_at_once(roomy):
    """Its answer would take minutes."""
    id = roomy.generate(token_ids=(9,) * 2500, max_tokens=200_000)
    roomy.until(lambda: roomy.told[id].started > 0)
    roomy.socket.close()
    assert roomy.process.wait(20) == 0


@pytest.mark.slow
def test_a_socket_closed_during_the_start_ends_the_process(varied: Path):
    worker = WorkerProcess(varied, wait=False)
    worker.socket.close()
    assert worker.process.wait(20) == 0
    worker.close()


def test_shutdown_ends_with_status_zero(varied: Path):
    worker = WorkerProcess(varied)
    worker.send(Shutdown())
    assert worker.process.wait(20) == 0
    worker.close()


@pytest.fixture
def roomy(varied: Path) -> Iterator[WorkerProcess]:
    """Nothing is too long for it before it is counted."""
    worker = WorkerProcess(varied, context=1 << 22)
    yield worker
    worker.close()


@pytest.mark.slow
def test_a_worker_that_tokenises_hears_pings_and_cancels(roomy):
    long = roomy.generate(text=HUGE, max_prompt=400_000)
    other = roomy.generate(text="hello", max_tokens=3)
    roomy.send(Ping(), Cancel(other))
    roomy.until(lambda: bool(roomy.pongs) and roomy.told[other].cancelled)
    assert not roomy.told[long].over
    roomy.until(lambda: roomy.told[long].over)
    assert roomy.told[long].refused is not None
    assert roomy.told[other].accepted is None


@pytest.mark.slow
def test_a_prompt_is_cancelled_while_it_is_tokenised(roomy):
    long = roomy.generate(text=HUGE, max_prompt=400_000)
    roomy.send(Cancel(long))
    roomy.until(lambda: roomy.told[long].over)
    assert roomy.told[long].cancelled
    assert roomy.run(text="hello", max_tokens=3).ended is not None
    assert roomy.told[long].refused is None
    assert roomy.told[long].accepted is None


@pytest.mark.parametrize("word", [Shutdown(), None])
@pytest.mark.slow
def test_a_worker_that_tokenises_ends_at_once(roomy, word):
    roomy.generate(text=HUGE * 2)
    roomy.send(Ping())
    roomy.until(lambda: bool(roomy.pongs))
    began = time.monotonic()
    if word is None:
        roomy.socket.close()
    else:
        roomy.send(word)
    assert roomy.process.wait(20) == 0
    assert time.monotonic() - began < 3


@pytest.mark.slow
def test_what_is_no_protocol_ends_the_process(varied: Path):
    worker = WorkerProcess(varied)
    worker.socket.sendall(b"\xff" * 64)
    assert worker.process.wait(20) == 70
    worker.close()


def test_frames_arrive_byte_by_byte(worker):
    id = 20_000
    for byte in encode(worker.message(id, text="hello", max_tokens=2)):
        worker.socket.sendall(bytes([byte]))
    worker.until(lambda: worker.told[id].over)
    assert worker.told[id].ended is not None


def test_a_folder_that_cannot_be_loaded_is_reported_and_the_process_ends(tmp_path: Path):
    folder = make_model(tmp_path / "secret-place" / "m", Shape())
    (folder / "model.safetensors").unlink()
    worker = WorkerProcess(folder)
    assert isinstance(worker.first, LoadFailed)
    assert "secret-place" not in worker.first.reason
    assert worker.process.wait(20) == 1
    worker.close()


def test_pieces_of_one_step_travel_together(worker):
    before = worker.outputs
    ids = [30_000 + n for n in range(8)]
    worker.send(*[worker.message(id, messages=asked(1), max_tokens=50) for id in ids])
    worker.until(lambda: all(worker.told[id].over for id in ids))
    assert worker.outputs - before < 100, "50 steps, and a few in which not all have come yet"


def test_a_spare_waits_for_its_model_and_then_is_like_any_other(varied: Path) -> None:
    spare = WorkerProcess(None)
    try:
        assert str(varied) not in " ".join(psutil.Process(spare.process.pid).cmdline())
        spare.send(Ping())
        spare.until(lambda: bool(spare.pongs))
        assert spare.loading == [], "it has nothing to load"
        spare.launch(varied, context=4096)
        assert isinstance(spare.first, Ready)
        stages = [said.stage for said in spare.loading]
        layout = ["layout"] if has_reference_blas() else []
        wanted = ["weights", "tokenizer", "first_step", *layout, "footprint"]
        assert list(dict.fromkeys(stages)) == wanted
        assert spare.run(messages=asked(1), max_tokens=3).ended is not None
    finally:
        spare.close()


def test_a_spare_ends_with_its_daemon(varied: Path) -> None:
    spare = WorkerProcess(None, wait=False)
    spare.socket.close()
    assert spare.process.wait(10) == 0
    spare.close()
