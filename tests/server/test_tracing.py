"""Tracing is told of requests, and harms none."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pytest
from aiohttp.test_utils import make_mocked_request

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


def served(made: Tracing) -> None:
    request, story = make_mocked_request("POST", PATH), untold()
    made.begin(request, story)
    made.end(story, 200)


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


def test_its_end_waits_for_all_receivers_together(
    hanging: Hanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def close(sink: SpanSink, seconds: float = LAST_SECONDS) -> None:
        sink.finish()
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
