"""Tracing is told of requests, and harms none."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp.test_utils import make_mocked_request

from mlxd.core.clock import stamp
from mlxd.core.story import untold
from mlxd.policy.load import Override, load
from mlxd.policy.policy_set import PolicySet
from mlxd.server import tracing
from mlxd.server.tracing import Tracing
from mlxd.telemetry.span_sink import LAST_SECONDS, SpanSink
from mlxd.telemetry.spans import Span

PATH = "/api/chat"


def policies(name: str) -> PolicySet:
    return load(None, [Override("server.traces.endpoint", f"http://{name}/", "a test")])


class Hanging:
    def __init__(self) -> None:
        self.goes_on = threading.Event()

    def open(self, url: str, service: str) -> Hanging:
        return self

    def export(self, spans: Sequence[Span]) -> bool:
        return self.goes_on.wait(60)

    def close(self) -> None:
        pass


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    made = Hanging()
    yield made
    made.goes_on.set()


def until(fact: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not fact():
        assert time.monotonic() < end
        time.sleep(0.005)


def served(made: Tracing) -> None:
    request, story = make_mocked_request("POST", PATH), untold()
    made.begin(request, story)
    made.end(story, 200)


def test_both_clocks_begin_with_the_request_however_late_its_trace_does(hanging: Hanging) -> None:
    """Else an engine process would seem to have it before it was sent there."""
    made = Tracing(policies("a"), {PATH: "ollama"}, hanging.open)
    story = replace(untold(), clock=time.monotonic, came=time.monotonic() - 5)
    made.begin(make_mocked_request("POST", PATH), story)
    assert story.trace is not None
    assert stamp() - story.trace.began == pytest.approx(story.now, abs=1)
    hanging.goes_on.set()
    made.close()


def test_a_defect_costs_spans_and_is_told_once(
    hanging: Hanging, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a client's words")

    made = Tracing(policies("a"), {PATH: "ollama"}, hanging.open)
    for name in ("parsed", "spans_of"):
        with monkeypatch.context() as patch:
            patch.setattr(tracing, name, broken)
            served(made)
    assert [record.getMessage().partition(",")[0] for record in caplog.records] == [
        "a request is not traced: a defect"
    ]
    assert "a client's words" not in caplog.text
    hanging.goes_on.set()
    served(made)
    made.close()
    assert dict(made.counts())[("sent",)] == 1


def test_want_of_a_thread_for_it_keeps_no_edit_from_its_force(
    hanging: Hanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    said = [Override("server.traces.endpoint", "http://a/", "a test")]
    made = Tracing(load(), {PATH: "ollama"}, hanging.open)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", none)
        made.apply(load(None, said))
        served(made)
    assert not dict(made.counts()).get(("dropped",)), "they wait until there is a thread"
    made.close()


def test_a_url_that_is_not_there_is_warned_of_until_it_is(
    hanging: Hanging, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    hanging.goes_on.set()
    said = [Override("server.traces.endpoint", "credential:nope", "a test")]
    made = Tracing(load(None, said), {PATH: "ollama"}, hanging.open)
    until(made.warnings)
    (warning,) = made.warnings()
    assert "(server.traces.endpoint): its URL cannot be read: No such file" in warning
    (tmp_path / "nope").write_text("http://a/")
    served(made)
    until(lambda: not made.warnings())
    made.close()


def test_its_end_waits_for_all_receivers_together(
    hanging: Hanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def close(sink: SpanSink, seconds: float = LAST_SECONDS) -> None:
        sink.finish()
        assert sink._thread is not None
        sink._thread.join(seconds)
        asked.append(seconds)

    made = Tracing(policies("a"), {PATH: "ollama"}, hanging.open)
    for name in ("b", "c", "d"):
        served(made)
        made.apply(policies(name))
    served(made)
    monkeypatch.setattr(SpanSink, "close", close)
    made.close()
    assert len(asked) == 4
    assert sum(asked) <= 1.5 * LAST_SECONDS, "the others have what the first one left"
