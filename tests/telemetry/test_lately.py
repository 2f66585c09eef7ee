from mlxd.core.caller import Caller
from mlxd.core.story import Story
from mlxd.telemetry.lately import MOST, WINDOW_S, Lately


def answer(*, ended=1.0, first=0.5, prompt=10, completion=11, decode=0.1, want="answer"):
    return Story(
        "1", "/v1/chat/completions", Caller("local"), 1, 0.0, lambda: 0.0, 0.0,
        first_token=first, ended=ended, prompt_tokens=prompt, completion_tokens=completion,
        decode_seconds=decode, want=want,
    )  # fmt: skip


def test_tokens_of_answers_under_way_count():
    lately = Lately()
    lately.ended(answer())
    told = lately.report(1.0, [answer(ended=None, prompt=5, completion=3)])
    assert (told["requests_ended"], told["prompt_tokens"], told["completion_tokens"]) == (1, 15, 14)


def test_a_prompt_that_is_only_counted_is_no_token_that_anybody_read():
    """Coding agents have long ones counted, over and over."""
    lately = Lately()
    lately.ended(answer(want="prompt", first=None, completion=0))
    told = lately.report(1.0, [answer(want="prompt", ended=None, first=None, completion=0)])
    assert (told["requests_ended"], told["prompt_tokens"]) == (1, 0)


def test_latencies_are_those_of_the_last_minute():
    lately = Lately()
    assert lately.report(0.0, [])["ttft_ms"] == {"p50": None, "p95": None}
    for n in range(1, 101):
        lately.ended(answer(first=n / 1000, decode=n / 100))
    told = lately.report(1.0, [])
    assert told["answers"] == 100
    assert told["ttft_ms"] == {"p50": 51.0, "p95": 95.0}
    assert told["token_gap_ms"] == {"p50": 51.0, "p95": 95.0}
    assert lately.report(1.0 + WINDOW_S, [])["answers"] == 0


def test_what_had_no_token_has_no_latency_and_one_token_no_gap():
    lately = Lately()
    lately.ended(answer(first=None, completion=0))
    lately.ended(answer(completion=1))
    told = lately.report(1.0, [])
    assert (told["answers"], told["token_gap_ms"]["p50"]) == (1, None)


def test_only_so_many_are_remembered():
    lately = Lately()
    for _ in range(MOST + 5):
        lately.ended(answer())
    assert lately.report(1.0, [])["answers"] == MOST
    assert lately.report(1.0, [])["requests_ended"] == MOST + 5
