"""Headers of answers, and what each says."""

from __future__ import annotations

from mlxd.dialects.shaping import COUNT, TEXT, Schema, one_of, whole
from mlxd.server.openapi.operation import Operation

ALWAYS = ("X-Request-Id", "Request-Id", "X-Mlxd-Policy")
TRIED = ("X-Mlxd-Would-Deny",)
REFUSED = ("X-Mlxd-Code", "X-Mlxd-Policy-Key", "X-Mlxd-Policy-Place")
LATER = ("Retry-After", "retry-after-ms", "X-Should-Retry")
"""Of what time may mend."""
MEMORY = ("X-Mlxd-Needed-Bytes", "X-Mlxd-Available-Bytes")
BUSY = (
    "RateLimit",
    "RateLimit-Policy",
    "X-Mlxd-Priority",
    "X-Mlxd-Free-Slots",
    "X-Mlxd-Expected-Wait",
)
PLACE = ("X-Mlxd-Queue-Position",)
_MAY_WAIT = frozenset({429, 503, 504})
_UNITS = ("requests", "tokens")
_EDGES = ("limit", "remaining", "reset")


def headers() -> dict[str, Schema]:
    """By name: what it says, and its shape."""
    return {
        "X-Request-Id": _one("The caller's, if it is short printable ASCII; else a new one."),
        "Request-Id": _one("The same."),
        "X-Mlxd-Policy": _one("The generation of policies that it was answered under.", COUNT),
        "X-Mlxd-Would-Deny": _one("Rules in mode dry_run that would have refused it."),
        "X-Mlxd-Code": _one("The error, by a name that stays."),
        "X-Mlxd-Policy-Key": _one("The line of policy that decided."),
        "X-Mlxd-Policy-Place": _one("Where it was set."),
        "X-Mlxd-Needed-Bytes": _one("What was compared where memory decided.", COUNT),
        "X-Mlxd-Available-Bytes": _one("What was compared where memory decided.", COUNT),
        "Retry-After": _one("Seconds after which the same may pass.", whole(1, 60)),
        "retry-after-ms": _one("The same in milliseconds.", whole(1, 60_000)),
        "X-Should-Retry": _one("Asking again by itself is in vain.", one_of(("false",))),
        "WWW-Authenticate": _one("How to send an API key."),
        "RateLimit": _one("What each limit leaves (RFC 9651)."),
        "RateLimit-Policy": _one("The limits that may refuse this client (RFC 9651)."),
        "X-Mlxd-Priority": _one("The class that it had.", one_of(("high", "medium", "low"))),
        "X-Mlxd-Free-Slots": _one("Requests that would get a slot at once.", COUNT),
        "X-Mlxd-Expected-Wait": _one("Seconds that the next one would wait, roughly.", COUNT),
        "X-Mlxd-Queue-Position": _one("Its place in the queue: 1 is next.", whole(1)),
        "ETag": _one("Of the policies in force."),
        **{name: _one(f"The tightest limit of {unit}.") for unit in _UNITS for name in _own(unit)},
    }


def _one(words: str, shape: Schema = TEXT) -> Schema:
    return {"description": words, "schema": shape}


def _own(unit: str) -> list[str]:
    """OpenAI's and Anthropic's own."""
    openais = [f"x-ratelimit-{edge}-{unit}" for edge in _EDGES]
    return openais + [f"anthropic-ratelimit-{unit}-{edge}" for edge in _EDGES]


def of_answer(operation: Operation) -> list[str]:
    """Those that may stand on it."""
    told = [*ALWAYS, *TRIED]
    if operation.for_owners:
        told.append("ETag")
    return [*told, *_counted(operation), *PLACE] if operation.counted else told


def of_refusal(status: int, *, counted: bool) -> list[str]:
    told = [*ALWAYS, *TRIED, *REFUSED]
    if status in _MAY_WAIT:
        told += [*LATER]
    if status == 503:
        told += [*MEMORY]
    if status == 401:
        told += ["WWW-Authenticate", "X-Should-Retry"]
    return [*told, *BUSY] if counted else told


def _counted(operation: Operation) -> list[str]:
    own = [name for unit in _UNITS for name in _own(unit)]
    beginnings = {"OpenAI": "x-", "Anthropic": "anthropic-"}
    mine = beginnings.get(operation.tag)
    return [*BUSY, *(name for name in own if mine is not None and name.startswith(mine))]
