"""Follows `server.traces`: which requests have spans, and where those are sent."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from aiohttp import web

from mlxd.core.clock import stamp
from mlxd.core.story import Story
from mlxd.core.trace_context import (
    Trace,
    TraceContext,
    is_within,
    new_span_id,
    new_trace_id,
    parsed,
)
from mlxd.core.traces import place_of
from mlxd.policy import credential
from mlxd.policy.policy_set import PolicySet
from mlxd.server.otlp import opened
from mlxd.telemetry.span_sink import LAST_SECONDS, Exporter, SpanSink, Unsendable
from mlxd.telemetry.spans import METHOD, spans_of

log = logging.getLogger(__name__)

_URLS = ("http://", "https://")
_RESULTS = ("sent", "failed", "dropped")

Opener = Callable[[str, str], Exporter]
"""Of a receiver, by its URL and by what the daemon is called there. Raises Unsendable."""


class Tracing:
    """Told of every request as it comes and as it ends; what has a model asked for something is
    traced. A defect in it costs spans, and no request its answer.
    """

    def __init__(
        self, policies: PolicySet, dialects: Mapping[str, str], open_exporter: Opener = opened
    ) -> None:
        """`dialects`: those of the paths that are traced."""
        self._dialects = dialects
        self._open = open_exporter
        self._told = False
        """There was a defect, and the log has it."""
        self._endpoint: str | None = None
        self._service = ""
        self._ratio = 1.0
        self._sink: SpanSink | None = None
        self._before: list[SpanSink] = []
        """Those that are being finished."""
        self._gone = dict.fromkeys(_RESULTS, 0)
        """What became of the spans of those that are over."""
        self.apply(policies)

    def apply(self, policies: PolicySet) -> None:
        """From the next request on; what is under way is sent where policy says at its end."""
        traces = policies.server.traces
        self._ratio = float(traces.sample)
        endpoint = str(traces.endpoint) if traces.endpoint is not None else None
        if (endpoint, traces.service) == (self._endpoint, self._service):
            return
        self._endpoint, self._service = endpoint, traces.service
        if self._sink is not None:
            self._sink.finish()
            self._before = [*self._unfinished(), self._sink]
        opens = partial(_open, self._open, endpoint or "", traces.service)
        self._sink = SpanSink(opens) if endpoint is not None else None

    def begin(self, request: web.BaseRequest, story: Story) -> None:
        """Its story is told which trace it is in, if it is in one."""
        with self._harmless():
            self._begin(request, story)

    def _begin(self, request: web.BaseRequest, story: Story) -> None:
        dialect = self._dialects.get(request.path)
        if self._sink is None or dialect is None or request.method != METHOD:
            return
        headers = request.headers
        parent = parsed(headers.getall("traceparent", ()), headers.getall("tracestate", ()))
        context = self._context(parent)
        if context.sampled:
            began = stamp() - story.now
            story.trace = Trace(context, parent, request.path, dialect, began)

    def end(self, story: Story, status: int) -> None:
        """It is over, whatever came of it."""
        if self._sink is not None and story.trace is not None:
            with self._harmless():
                self._sink.put(spans_of(story, story.trace, status, stamp()))

    def counts(self) -> Iterable[tuple[tuple[str], float]]:
        """What became of spans."""
        sinks = self._sinks()
        for result in _RESULTS:
            found = (getattr(sink.counts, result) for sink in sinks)
            yield (result,), self._gone[result] + sum(found)

    def warnings(self) -> list[str]:
        """What makes it impossible, or why the last spans were not sent."""
        if self._sink is None:
            return []
        if self._sink.impossible:
            return [f"server.traces.endpoint is set, and {self._sink.impossible}"]
        failure = self._sink.failure
        return [f"traces are not sent (server.traces.endpoint): {failure}"] if failure else []

    def close(self) -> None:
        """At the end of the daemon: what is waiting is sent, if it is taken at once."""
        sinks = self._sinks()
        for sink in sinks:
            sink.finish()
        until = time.monotonic() + LAST_SECONDS
        for sink in sinks:
            sink.close(max(0.0, until - time.monotonic()))

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        """What is raised within is told once, without its words, which may be a client's."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever it is, requests are answered
            if not self._told:
                log.error(
                    "a request is not traced: a defect, %s in %s",
                    type(error).__name__, place_of(error),
                )  # fmt: skip
            self._told = True

    def _context(self, parent: TraceContext | None) -> TraceContext:
        """Of a request's first span: whoever began the trace has decided whether it is sampled."""
        if parent is not None:
            return TraceContext(parent.trace_id, new_span_id(), parent.sampled, parent.state)
        trace_id = new_trace_id()
        return TraceContext(trace_id, new_span_id(), is_within(self._ratio, trace_id))

    def _sinks(self) -> list[SpanSink]:
        return [*self._before, *([self._sink] if self._sink is not None else [])]

    def _unfinished(self) -> Iterable[SpanSink]:
        for sink in self._before:
            if not sink.over:
                yield sink
                continue
            for result in _RESULTS:
                self._gone[result] += getattr(sink.counts, result)


def _open(open_exporter: Opener, endpoint: str, service: str) -> Exporter:
    """In the sink's thread: a secret is read each time, and may be replaced. Raises Unsendable."""
    url = endpoint
    try:
        if not url.startswith(_URLS):
            url = credential.read(url)
        if not url.startswith(_URLS):
            raise Unsendable("its URL is no http or https URL")
        return open_exporter(url, service)
    except (credential.Unreadable, OSError) as error:
        raise Unsendable(f"its URL cannot be read: {error}") from None
    except ValueError:
        raise Unsendable("its URL cannot be read") from None
