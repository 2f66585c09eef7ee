"""mlxd's own paths."""

from __future__ import annotations

from collections.abc import Iterator

from mlxd.core import errors
from mlxd.dialects.shaping import COUNT, OBJECT, TEXT, listed, refer
from mlxd.server.openapi import failures
from mlxd.server.openapi.operation import (
    EVENTS,
    JSON,
    STREAMS,
    Answer,
    Operation,
    Parameter,
    json_of,
    plain,
)

FOLLOWING = (
    Parameter("since", "query", COUNT, "What came after this id; 0: all that is kept."),
    Parameter("types", "query", TEXT, "Those alone, with commas between."),
    Parameter("Last-Event-ID", "header", COUNT, "As `since`; it goes before it."),
)


def operations() -> Iterator[Operation]:
    for path, name, words in (
        ("/", "Root", "What health scripts look for."),
        ("/queue/stats", "QueueStats", "Who waits for a slot, and for what else."),
        ("/api/chat/mlx/metrics", "Health", "As /health."),
        ("/api/chat/status", "ChatStatus", "How the daemon is."),
    ):
        yield Operation("GET", path, words, "mlxd", {200: json_of(name)}, failures.EDGE)
    yield from _probes()
    yield Operation(
        "GET", "/metrics", "What is counted, for Prometheus.", "mlxd",
        {200: plain("Prometheus' text format.")}, failures.EDGE,
    )  # fmt: skip
    yield Operation(
        "GET", "/openapi.json", "This document.", "mlxd",
        {200: Answer("OpenAPI 3.1.", {JSON: OBJECT})}, failures.EDGE,
    )  # fmt: skip
    yield events()


def _probes() -> Iterator[Operation]:
    yield Operation(
        "GET", "/health", "How the daemon is, always 200.", "mlxd", {200: json_of("Health")},
        failures.EDGE, open=True,
    )  # fmt: skip
    yield Operation(
        "GET", "/livez", "Whether it lives.", "mlxd", {200: plain("ok")}, failures.EDGE, open=True
    )
    yield Operation(
        "GET", "/readyz", "Whether traffic should come here.", "mlxd",
        {200: plain("ok"), 503: plain("Why not.")}, failures.EDGE, open=True,
    )  # fmt: skip


def events() -> Operation:
    """To clients."""
    told = Answer(
        "Server-sent events as they happen; with `Accept: application/json` a list.",
        {EVENTS: STREAMS[EVENTS], JSON: listed(refer("Event"))},
        {EVENTS: refer("Event")},
    )
    raises = (*failures.EDGE, *failures.QUERY, errors.Overloaded)
    return Operation(
        "GET", "/api/events", "What mlxd decides.", "mlxd", {200: told}, raises,
        parameters=FOLLOWING,
    )  # fmt: skip
