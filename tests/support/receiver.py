"""A receiver of traces on this machine: takes what OTLP/HTTP posts, and keeps every span."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Wire


@dataclass(frozen=True, slots=True)
class Got:
    """One span as it came; times in nanoseconds since the epoch."""

    name: str
    trace: str
    id: str
    parent: str
    state: str
    start: int
    end: int
    kind: int
    failed: bool
    attributes: dict[str, Any]
    events: list[tuple[str, dict[str, Any]]]
    resource: dict[str, Any]


@dataclass(slots=True)
class Receiver:
    port: int
    spans: list[Got] = field(default_factory=list)
    raw: bytes = b""
    """All bodies."""
    paths: list[str] = field(default_factory=list)
    status: int = 200
    hangs: threading.Event = field(default_factory=threading.Event)
    """Not set: it does not answer."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def tree(self, trace: str) -> list[Got]:
        """The spans of one trace, in order of their starts."""
        return sorted((s for s in self.spans if s.trace == trace), key=lambda s: (s.start, -s.end))

    def of_request(self, id: str) -> list[Got]:
        """Those of the request with this id; none before its first span has come."""
        roots = [s for s in self.spans if s.attributes.get("mlxd.request.id") == id]
        return self.tree(roots[0].trace) if roots else []

    def take(self, path: str, body: bytes) -> None:
        self.paths.append(path)
        self.raw += body
        message = ExportTraceServiceRequest.FromString(body)
        for group in message.resource_spans:
            resource = _plain(group.resource.attributes)
            for scope in group.scope_spans:
                self.spans += [_got(span, resource) for span in scope.spans]


@contextmanager
def receiver(port: int = 0) -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if not got.hangs.wait(60):
                return
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            if got.status == 200:
                got.take(self.path, body)
            self.send_response(got.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Whoever posted has gone."""

    server = Server(("127.0.0.1", port), Handler)
    got = Receiver(server.server_address[1])
    got.hangs.set()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield got
    finally:
        got.hangs.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _got(span: Wire, resource: dict[str, Any]) -> Got:
    return Got(
        name=span.name, trace=span.trace_id.hex(), id=span.span_id.hex(),
        parent=span.parent_span_id.hex(), state=span.trace_state,
        start=span.start_time_unix_nano, end=span.end_time_unix_nano, kind=span.kind,
        failed=span.status.code == 2, attributes=_plain(span.attributes),
        events=[(event.name, _plain(event.attributes)) for event in span.events],
        resource=resource,
    )  # fmt: skip


def _plain(pairs: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in pairs:
        one: KeyValue = pair
        found[one.key] = _value(one.value)
    return found


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, str(kind))
