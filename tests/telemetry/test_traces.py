"""A story as a tree of spans."""

from __future__ import annotations

from typing import Any

from mlxd.core.caller import Caller
from mlxd.core.leg import Leg
from mlxd.core.story import MOST_LEGS, Story
from mlxd.core.trace_context import Trace, TraceContext
from mlxd.telemetry.spans import Span, spans_of

SECOND = 1_000_000_000
CONTEXT = TraceContext("a" * 32, "b" * 16, sampled=True)
TRACE = Trace(CONTEXT, None, "/api/chat", "ollama", began=50.0)


def story(**facts: Any) -> Story:
    told = Story("id", "/api/chat", Caller("c", tenant="kim"), 3, 1000.0, lambda: 9.0, 0.0)
    for name, value in {"want": "answer", "model": "tiny", **facts}.items():
        setattr(told, name, value)
    return told


def leg(**facts: Any) -> Leg:
    told = {
        "pid": 7, "span_id": "c" * 16, "attempt": 1, "tokens_before": 0, "reason_before": "",
        "sent": 52.0,
    }  # fmt: skip
    return Leg(**{**told, **facts})


def spans(told: Story, status: int = 200) -> list[Span]:
    return spans_of(told, TRACE, status, 60.0)


def times(span: Span) -> tuple[float, float]:
    """In seconds since the request came."""
    return (span.start - 1000 * SECOND) / SECOND, (span.end - 1000 * SECOND) / SECOND


def test_one_that_waits_until_its_end_has_no_slot_and_no_worker() -> None:
    told = story(judged=1.0, code="queue_timeout")
    told.note("queued", position=4)
    root, queue = spans(told, 503)
    assert (root.failed, times(root), times(queue)) == (True, (0.0, 10.0), (1.0, 10.0))
    assert queue.attributes == {"mlxd.queue.waited": True, "mlxd.queue.position": 4}
    assert root.attributes["error.type"] == "queue_timeout"
    assert root.attributes["mlxd.tenant"] == "kim"


def test_one_whose_model_does_not_come_ends_while_it_loads() -> None:
    told = story(judged=1.0, admitted=1.0, code="model_load_failed")
    load = spans(told, 503)[-1]
    assert (load.name, times(load)) == ("load", (1.0, 10.0))


def test_a_model_that_is_there_is_no_load() -> None:
    told = story(judged=1.0, admitted=1.0, leased=1.5, loaded=False)
    assert [span.name for span in spans(told)] == ["POST /api/chat", "queue"]


def test_a_load_that_is_asked_for_needs_no_slot() -> None:
    told = story(want="load", leased=9.5, loaded=True)
    told.note("asked")
    told.note("leased", room_seconds=0.1, load_seconds=0.4, spare=True, evicted="")
    root, load = spans(told)
    assert times(load) == (9.0, 9.5)
    assert load.attributes == {
        "mlxd.load.room_seconds": 0.1, "mlxd.load.seconds": 0.4, "mlxd.load.spare": True,
    }  # fmt: skip
    assert "gen_ai.operation.name" not in root.attributes


def test_a_stream_that_broke_has_failed_whatever_its_status() -> None:
    assert spans(story(code="worker_crashed"))[0].failed
    assert not spans(story(code="invalid_request"), 400)[0].failed
    assert not spans(story(), 499)[0].failed


def test_a_worker_that_was_left_before_its_first_token() -> None:
    told = story()
    told.add_leg(leg(received=53.0, started=54.0))
    _, worker, prefill = spans(told, 499)
    assert (times(worker), times(prefill)) == ((3.0, 10.0), (4.0, 10.0))
    assert not worker.failed
    assert (worker.context.span_id, prefill.parent) == ("c" * 16, worker.context)


def test_one_that_goes_on_reads_the_answer_too() -> None:
    told = story()
    told.add_leg(
        leg(
            received=53.0, started=54.0, first=55.0, ended=56.0, attempt=2, tokens_before=5,
            reason_before="stalled", prompt_tokens=10, cached_tokens=4, tokens=9, reason="stop",
        )
    )  # fmt: skip
    _, worker, prefill, decode = spans(told)
    assert prefill.attributes == {"mlxd.prefill.tokens": 11}
    assert decode.attributes == {"mlxd.decode.tokens": 4}
    (event,) = worker.events
    assert event.attributes == {"mlxd.replay.reason": "stalled", "mlxd.replay.tokens": 5}


def test_the_first_beginning_and_the_first_end_count() -> None:
    one = leg()
    one.start(53.0)
    one.start(54.0)
    one.end("SIGKILL", 55.0)
    one.end("worker_crashed", 56.0)
    assert (one.started, one.reason, one.ended) == (53.0, "SIGKILL", 55.0)


def test_no_story_has_legs_without_end() -> None:
    told = story()
    for _ in range(MOST_LEGS + 5):
        told.add_leg(leg())
    assert len(told.legs) == MOST_LEGS
