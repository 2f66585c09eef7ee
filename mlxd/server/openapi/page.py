"""The page's paths, and what it asks."""

from __future__ import annotations

from collections.abc import Iterator

from mlxd.core.caller import PRIORITIES
from mlxd.dialects.shaping import (
    COUNT,
    FLAG,
    NUMBER,
    TEXT,
    Schema,
    Shapes,
    answer,
    listed,
    or_null,
    refer,
)
from mlxd.server import identity
from mlxd.server.openapi import failures
from mlxd.server.openapi.admin_shapes import process
from mlxd.server.openapi.operation import Answer, Operation, Parameter, json_of

_KINDS = ("text/html", "text/css", "text/javascript", "image/svg+xml", "text/plain")
_SAME = Answer("What the `If-None-Match` names.")


def operations() -> Iterator[Operation]:
    known = Parameter("If-None-Match", "header", TEXT, "An ETag of one that was served.")
    yield Operation(
        "GET", "/ui", "The page.", "mlxd", {200: _file(_KINDS[0]), 304: _SAME}, failures.EDGE,
        parameters=(known,), open=True,
    )  # fmt: skip
    yield Operation(
        "GET", "/ui/", "To the page.", "mlxd", {308: Answer("To /ui.")}, failures.EDGE, open=True
    )
    yield Operation(
        "GET", "/ui/assets/{file}", "What the page is made of.", "mlxd",
        {200: _file(*_KINDS[1:]), 304: _SAME, 404: _file(_KINDS[-1], words="There is none.")},
        failures.EDGE, parameters=(Parameter("file", "path", TEXT), known), open=True,
    )  # fmt: skip
    for path, name, words in (
        ("/ui/session", "PageSession", "What the page may do here, and with what token."),
        ("/ui/state", "PageState", "/health, and how the daemon does now."),
    ):
        told = {200: json_of(name)}
        unlocked = path in identity.PAGE
        yield Operation("GET", path, words, "mlxd", told, failures.EDGE, open=unlocked)


def _file(*kinds: str, words: str = "A file.") -> Answer:
    return Answer(words, {kind: {"type": "string"} for kind in kinds})


def shapes() -> Shapes:
    session = {"version": TEXT, "token": or_null(TEXT), "why": TEXT, "key": or_null(TEXT)}
    seconds = answer({"p50": NUMBER, "p99": NUMBER})
    slots = answer({"active": COUNT, "total": COUNT})
    return {
        "PageSession": answer(session | {"keys_required": FLAG, "admin": FLAG}),
        "PageState": answer(
            {
                "health": refer("Health"),
                "uptime_seconds": NUMBER,
                "draining": FLAG,
                "slots": slots,
                "queued": answer(dict.fromkeys(PRIORITIES, COUNT)),
                "queue_wait_seconds": seconds,
                "resident": listed(answer(process())),
                "lately": refer("Lately"),
            }
        ),
        "Lately": _lately(),
    }


def _lately() -> Schema:
    counts = ("requests_ended", "prompt_tokens", "completion_tokens", "answers")
    measured = answer(dict.fromkeys(("p50", "p95"), or_null(NUMBER)))
    return answer(dict.fromkeys(counts, COUNT) | {"ttft_ms": measured, "token_gap_ms": measured})
