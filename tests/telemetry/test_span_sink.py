"""The thread that sends spans, with receivers that are well and others."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from mlxd.core.trace_context import TraceContext
from mlxd.telemetry.span_sink import MOST_WAITING, NotInstalled, SpanSink, Unsendable
from mlxd.telemetry.spans import Span
from tests.support.few_threads import no_threads

TREE = [Span("x", TraceContext("a" * 32, "b" * 16, sampled=True), None, 1, 2, {})] * 4


class Fake:
    """An exporter that does what it is told."""

    def __init__(self) -> None:
        self.well = True
        self.got: list[Span] = []
        self.asked = threading.Semaphore(0)
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.closed = 0
        self.wrong: Exception | None = None
        self.raises: Exception | None = None

    def open(self) -> Fake:
        if self.wrong is not None:
            raise self.wrong
        return self

    def export(self, spans: Sequence[Span]) -> bool:
        self.asked.release()
        self.goes_on.wait(30)
        if self.raises is not None:
            raise self.raises
        if self.well:
            self.got += spans
        return self.well

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def fake() -> Iterator[Fake]:
    made = Fake()
    yield made
    made.goes_on.set()


def until(fact: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_what_is_put_is_sent_and_the_end_waits_for_it(fake: Fake) -> None:
    sink = SpanSink(fake.open)
    sink.put(TREE)
    sink.put(TREE)
    sink.close(30)
    assert (len(fake.got), sink.counts.sent, sink.over, fake.closed) == (8, 8, True, 1)
    sink.put(TREE)
    assert sink.counts.dropped == 4


def test_without_a_thread_they_wait_until_there_is_one(fake: Fake) -> None:
    with no_threads():
        sink = SpanSink(fake.open)
        sink.put(TREE)
    sink.put(TREE)
    sink.close(30)
    assert (len(fake.got), sink.counts.sent, sink.over) == (8, 8, True)


def test_one_that_hangs_holds_nobody_up_and_what_is_too_much_is_dropped(fake: Fake) -> None:
    fake.goes_on.clear()
    sink = SpanSink(fake.open)
    sink.put(TREE)
    assert fake.asked.acquire(timeout=30)
    for _ in range(MOST_WAITING // 4 + 5):
        sink.put(TREE)
    assert sink.counts.dropped == 20
    began = time.monotonic()
    sink.close(0.05)
    assert time.monotonic() - began < 10
    assert not sink.over
    fake.well = False
    fake.goes_on.set()
    until(lambda: sink.over)
    assert sink.counts.failed == 4, "one attempt at the end"
    assert sink.counts.dropped == 20 + MOST_WAITING


def test_a_failure_is_told_once_and_its_end_too(
    fake: Fake, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    sink = SpanSink(fake.open)
    fake.well = False
    sink.put(TREE)
    until(lambda: sink.counts.failed == 4)
    sink.put(TREE)
    until(lambda: sink.counts.failed == 8)
    assert fake.closed == 2, "it is opened anew"
    fake.well = True
    sink.put(TREE)
    until(lambda: sink.counts.sent)
    sink.close(30)
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "traces are not sent", "traces are sent again",
    ]  # fmt: skip


def test_one_that_cannot_be_opened_is_tried_again(fake: Fake) -> None:
    fake.wrong = Unsendable("not now")
    sink = SpanSink(fake.open)
    sink.put(TREE)
    until(lambda: sink.counts.failed)
    assert sink.impossible == ""
    fake.wrong = None
    sink.put(TREE)
    sink.close(30)
    assert sink.counts.sent == 4


def test_what_is_not_installed_is_not_asked_for_again(fake: Fake) -> None:
    fake.wrong = NotInstalled("no such thing")
    sink = SpanSink(fake.open)
    until(lambda: sink.over)
    assert sink.impossible == "no such thing"
    sink.put(TREE)
    assert sink.counts.dropped == 4


def test_an_exporter_that_cannot_be_made_is_tried_again_and_its_words_are_kept(
    fake: Fake, caplog: pytest.LogCaptureFixture
) -> None:
    fake.wrong = RuntimeError("a secret")
    sink = SpanSink(fake.open)
    sink.put(TREE)
    until(lambda: sink.counts.failed == 4)
    fake.wrong = None
    sink.put(TREE)
    sink.close(30)
    assert sink.counts.sent == 4
    assert "cannot be made (RuntimeError)" in caplog.text
    assert "a secret" not in caplog.text


def test_an_exporter_that_raises_has_failed_and_the_next_spans_are_sent(
    fake: Fake, caplog: pytest.LogCaptureFixture
) -> None:
    fake.raises = KeyError("a secret")
    sink = SpanSink(fake.open)
    sink.put(TREE)
    until(lambda: sink.counts.failed == 4)
    fake.raises = None
    sink.put(TREE)
    sink.close(30)
    assert (sink.counts.sent, fake.closed) == (4, 2)
    assert "failed (KeyError)" in caplog.text
    assert "a secret" not in caplog.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_waits_when_its_thread_ends_is_dropped(fake: Fake) -> None:
    def end() -> Fake:
        fake.goes_on.wait(30)
        raise SystemExit

    fake.goes_on.clear()
    sink = SpanSink(end)
    sink.put(TREE)
    fake.goes_on.set()
    until(lambda: sink.over)
    sink.put(TREE)
    assert sink.counts.dropped == 8
