"""Shapes that every API has: of fields of mlxd's own, and of what an error has beside its words."""

from __future__ import annotations

from mlxd.core.caller import PRIORITIES
from mlxd.dialects.fields import LONGEST_STOP
from mlxd.dialects.shaping import (
    NUMBER,
    OBJECT,
    TEXT,
    WHOLE,
    Schema,
    Shapes,
    answer,
    either,
    mapping,
    one_of,
    refer,
    said,
    text,
)

PRIORITY, KEEP_ALIVE, USER = refer("Priority"), refer("KeepAlive"), text()
STOP = text(LONGEST_STOP)
JSON_SCHEMA = said(OBJECT, "A JSON Schema.")
ARGUMENTS: Schema = said({}, "An object, or one in a string; what is none is read as its `input`.")
"""Of a call in a conversation."""


def explained() -> dict[str, Schema]:
    """What `explanation` tells, each where there is something to tell."""
    return {
        "policy": refer("PolicyLine"),
        "numbers": mapping(either(NUMBER, TEXT)),
        "would_pass": TEXT,
        "retry_after": NUMBER,
    }


def shapes() -> Shapes:
    event = {"event": TEXT, "data": TEXT, "id": TEXT, "retry": WHOLE}
    return {
        "ServerSentEvent": said(answer({}, event), "One of a stream."),
        "Priority": said(
            either(one_of(PRIORITIES), WHOLE),
            "How soon it is served where others wait: a class, in any case, or vLLM's integer"
            " (below 0 is high).",
        ),
        "KeepAlive": said(
            either(NUMBER, TEXT),
            "How long the model stays in memory afterwards: seconds, or a duration such as `5m`;"
            " below 0: for ever.",
        ),
        "PolicyLine": said(
            answer({"key": TEXT, "value": TEXT, "place": TEXT}),
            "The line of policy to change for another answer.",
        ),
    }
