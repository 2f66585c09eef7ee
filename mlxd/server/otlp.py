"""Spans as OpenTelemetry's own packages send them, over OTLP/HTTP. The only file that names them,
and it imports them when there is something to send: they are an extra, `mlxd[otel]`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mlxd import __version__
from mlxd.core.trace_context import TraceContext
from mlxd.telemetry.span_sink import NotInstalled
from mlxd.telemetry.spans import Event, Span

if TYPE_CHECKING:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import Event as SdkEvent
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext
    from requests import Session

SECONDS = 5.0
"""How long one post may take, its repetitions included."""
PATH = "/v1/traces"
"""Where receivers take spans, unless a URL says otherwise."""
MISSING = "the packages of OpenTelemetry are not installed: pip install 'mlxd[otel]'"
_ELSEWHERE = range(300, 400)
_TOO_LOUD = {"opentelemetry": logging.CRITICAL + 1, "urllib3": logging.WARNING}
"""Loggers that tell of each attempt, in words that may hold a URL."""


class Otlp:
    """An exporter for one receiver."""

    def __init__(self, exporter: OTLPSpanExporter, resource: Resource) -> None:
        self._exporter = exporter
        self._resource = resource

    def export(self, spans: Sequence[Span]) -> bool:
        from opentelemetry.sdk.trace.export import SpanExportResult

        told = [_readable(span, self._resource) for span in spans]
        return self._exporter.export(told) is SpanExportResult.SUCCESS

    def close(self) -> None:
        self._exporter.shutdown()  # type: ignore[no-untyped-call]  # it has no types


def opened(url: str, service: str) -> Otlp:
    """May take a while: the packages are imported. Raises NotInstalled.

    What the environment says of headers and certificates (OTEL_EXPORTER_OTLP_HEADERS and the like)
    holds, too.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
    except ImportError:
        raise NotInstalled(MISSING) from None
    for name, level in _TOO_LOUD.items():
        logging.getLogger(name).setLevel(level)
    told: dict[str, str | int]
    told = {"service.name": service, "service.version": __version__, "process.pid": os.getpid()}
    exporter = OTLPSpanExporter(endpoint=whole(url), timeout=SECONDS, session=_session())
    return Otlp(exporter, Resource.create({**told}))


def _session() -> Session:
    """Of an answer it reads the head alone: a body may never end. Being sent elsewhere is a
    failure.
    """
    import requests

    class HeadsOnly(requests.Session):
        def request(self, *about: Any, **more: Any) -> requests.Response:
            response = super().request(*about, **{**more, "stream": True})
            response.close()
            if response.status_code in _ELSEWHERE:
                raise requests.TooManyRedirects(f"status {response.status_code}")
            return response

        def get_redirect_target(self, resp: requests.Response) -> None:
            """None: to look for one, the body would be read."""

    return HeadsOnly()


def whole(url: str) -> str:
    """With the path that receivers have, where it has none."""
    parts = urlsplit(url)
    return url if parts.path not in ("", "/") else parts._replace(path=PATH).geturl()


def _readable(span: Span, resource: Resource) -> ReadableSpan:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import SpanKind, Status, StatusCode

    parent = span.parent
    return ReadableSpan(
        span.name,
        context=_context(span.context),
        parent=_context(parent, remote=span.kind == "server") if parent is not None else None,
        resource=resource,
        attributes=dict(span.attributes),
        events=[_event(event) for event in span.events],
        kind=SpanKind.SERVER if span.kind == "server" else SpanKind.INTERNAL,
        status=Status(StatusCode.ERROR if span.failed else StatusCode.UNSET),
        start_time=span.start,
        end_time=span.end,
        instrumentation_scope=InstrumentationScope("mlxd", __version__),
    )


def _context(one: TraceContext, *, remote: bool = False) -> SpanContext:
    from opentelemetry.trace import SpanContext, TraceFlags, TraceState

    return SpanContext(
        int(one.trace_id, 16),
        int(one.span_id, 16),
        is_remote=remote,
        trace_flags=TraceFlags(TraceFlags.SAMPLED if one.sampled else TraceFlags.DEFAULT),
        trace_state=TraceState.from_header([one.state]),
    )


def _event(event: Event) -> SdkEvent:
    from opentelemetry.sdk.trace import Event as SdkEvent

    return SdkEvent(event.name, dict(event.attributes), event.at)
