"""The bodies of the admin side's answers, and of what it is asked."""

from __future__ import annotations

from typing import get_args

from mlxd.control.fit import Confidence, Verdict
from mlxd.core.caller import PRIORITIES
from mlxd.dialects.common_shapes import KEEP_ALIVE
from mlxd.dialects.shaping import (
    COUNT,
    FLAG,
    NUMBER,
    OBJECT,
    TEXT,
    TEXTS,
    TIME,
    WHOLE,
    Schema,
    Shapes,
    answer,
    listed,
    mapping,
    one_of,
    or_null,
    question,
    refer,
    said,
    text,
    whole,
)
from mlxd.policy.outcome import Result, Trigger
from mlxd.policy.policy_set import FILES
from mlxd.policy.schema import Reload
from mlxd.server.openapi.shapes import health, policy_summary, quarantined

_NAME = {"model": text(least=1)}
_POINTS = said(listed(listed(NUMBER, 2, least=2)), "A count and a rate each.")
_PLACE = {"file": or_null(TEXT), "line": or_null(COUNT), "column": or_null(COUNT)}


def shapes() -> Shapes:
    return {
        **_asked(),
        **_policies(),
        "AdminPolicy": answer(policy_summary() | {"last_outcome": refer("Outcome")}),
        "AdminHistory": answer({"generation": COUNT, "history": listed(refer("Generation"))}),
        "AdminExplained": answer(
            {"values": listed(refer("Explained")), "errors": listed(refer("PolicyError"))}
        ),
        "AdminEffective": _effective(),
        "AdminPlanned": _planned(),
        "AdminKeys": answer({"file": TEXT, "valid": COUNT, "problem": TEXT}),
        "AdminReset": answer({"was_held": FLAG}),
        "AdminUsage": _usage(),
        **_models(),
        **_benched(),
        "AdminFit": _fit(),
        "AdminHealth": health(
            {
                "quarantined_requests": listed(quarantined({"client": TEXT})),
                "recent_events": listed(refer("Event")),
                "log": TEXT,
            }
        ),
        "AdminCrashes": answer({"crashes": listed(refer("Crash"))}),
        "Crash": _crash(),
        "AdminEvents": answer({"events": listed(refer("Event"))}),
        "AdminCache": _cache(),
        "Story": _story(),
        "AdminRequests": answer({"requests": listed(refer("Story"))}),
    }


def _asked() -> Shapes:
    files = dict.fromkeys(FILES, TEXT)
    return {
        "AdminPlanRequest": {
            "type": "object",
            "properties": {
                "files": {"type": "object", "properties": files, "additionalProperties": False},
                "set": mapping(TEXT) | {"propertyNames": {"minLength": 1}},
            },
        },
        "AdminModelRequest": question(_NAME),
        "AdminLoadRequest": question(_NAME, {"keep_alive": KEEP_ALIVE}),
        "AdminFitRequest": question(_NAME, {"context": whole(1, 2**40 - 1)}),
        "AdminBenchRequest": question(_NAME | {"prefill": _POINTS, "decode": _POINTS}),
    }


def _policies() -> Shapes:
    change = {"key": TEXT, "old": or_null(TEXT), "new": or_null(TEXT), "place": TEXT}
    story = {"trigger": TEXT, "by": TEXT, "changes": listed(refer("PolicyChange"))}
    return {
        "PolicyError": answer(_PLACE | {"key": TEXT, "message": TEXT, "text": TEXT}),
        "PolicyChange": answer(change | {"reload": one_of(get_args(Reload))}),
        "Generation": answer({"generation": COUNT, "at": TIME, "files": TEXTS} | story),
        "Explained": _explained(),
        "Outcome": answer(
            {
                "id": COUNT,
                "trigger": one_of(get_args(Trigger)),
                "by": TEXT,
                "result": one_of(get_args(Result)),
                "generation": COUNT,
                "etag": TEXT,
                "at": NUMBER,
                "seconds": NUMBER,
                "changes": listed(refer("PolicyChange")),
                "errors": listed(refer("PolicyError")),
            }
        ),
    }


def _explained() -> Schema:
    hidden = answer({"value": TEXT, "source": TEXT} | _PLACE)
    return answer(
        {
            "key": TEXT,
            "value": TEXT,
            "until_restart": or_null(TEXT),
            "held": or_null(TEXT),
            "source": TEXT,
            **_PLACE,
            "shadowed": listed(hidden),
            "default": or_null(TEXT),
            "takes": TEXT,
            "unit": TEXT,
            "reload": one_of(get_args(Reload)),
            "meaning": TEXT,
        }
    )


def _effective() -> Schema:
    values = mapping(refer("Explained"))
    errors = listed(refer("PolicyError"))
    head = dict.fromkeys(("source", "folder", "hash"), TEXT)
    return answer({"generation": COUNT, **head, "errors": errors, "values": values})


def _planned() -> Schema:
    return answer(
        {
            "valid": FLAG,
            "folder": TEXT,
            "generation": COUNT,
            "errors": listed(refer("PolicyError")),
            "changes": listed(refer("PolicyChange")),
            **dict.fromkeys(("effects", "shadowed", "warnings"), TEXTS),
        }
    )


def _usage() -> Schema:
    names = ("daily_tokens", "tokens", "requests", "max_in_flight")
    tenant = {
        "tenant": TEXT,
        "tokens_today": COUNT,
        "tokens_in_window": COUNT,
        "window_seconds": NUMBER,
        "limits": answer(dict.fromkeys(names, or_null(COUNT))),
    }
    day = text(pattern=r"^\d{4}-\d{2}-\d{2}$")
    return answer({"day": day, "resets_at": TIME, "tenants": listed(answer(tenant))})


def _models() -> Shapes:
    shown = ("license", "digest", "path", "repository", "revision")
    running = process() | {"progress": or_null(refer("Loading"))}
    return {
        "AdminModels": answer({"models": listed(answer(_entry()))}),
        "AdminModel": answer(
            {
                **_entry(),
                **dict.fromkeys(shown, TEXT),
                "chat_template": FLAG,
                "sampling": OBJECT,
            }
        ),
        "AdminProcesses": answer({"models": listed(answer(running))}),
        "AdminNamed": answer({"name": TEXT, "model": TEXT}),
        "AdminDeleted": answer({"name": TEXT}),
        "AdminModelStderr": answer({"model": TEXT, "pid": or_null(COUNT), "lines": TEXTS}),
        "AdminModelReset": answer({"model": TEXT, "reset": FLAG, "requests": COUNT}),
    }


def process() -> dict[str, Schema]:
    """What is in memory, or on its way there."""
    return {
        "name": TEXT,
        "size_bytes": COUNT,
        "context": COUNT,
        "running": COUNT,
        "loading": FLAG,
        "pid": or_null(COUNT),
        "expires_in_seconds": or_null(NUMBER),
        "leaving": FLAG,
        "uses": COUNT,
    }


def _entry() -> dict[str, Schema]:
    texts = ("name", "quantization", "family", "unavailable", "state", "draft", "undrafted")
    return {
        **dict.fromkeys(texts, TEXT),
        **dict.fromkeys(("size_bytes", "parameters", "context"), COUNT),
        "capabilities": TEXTS,
        "modified": TIME,
        "loaded": FLAG,
    }


def _benched() -> Shapes:
    bench = answer(
        {"at": TIME, "engine": TEXT, "machine": TEXT, "prefill": _POINTS, "decode": _POINTS}
    )
    told = {"model": TEXT, "bench": or_null(bench)}
    return {"AdminBench": answer(told), "AdminBenched": answer(told | {"warnings": TEXTS})}


def _fit() -> Schema:
    return answer(
        {
            "model": TEXT,
            "verdict": one_of(get_args(Verdict)),
            "needed_bytes": COUNT,
            "available_bytes": WHOLE,
            "context": COUNT,
            "longest_context": COUNT,
            "evicts": TEXTS,
            "wait_seconds": or_null(NUMBER),
            "confidence": one_of(get_args(Confidence)),
            "observations": COUNT,
            "error_percent": or_null(NUMBER),
            "reason": TEXT,
            "policy": or_null(answer({"key": TEXT, "value": TEXT, "place": TEXT})),
        }
    )


def _crash() -> Schema:
    """And what its event told: event types differ."""
    kinds = one_of(("worker", "daemon"))
    told = {"schema": COUNT, "kind": kinds, "event": COUNT, "message": TEXT, "at": NUMBER}
    return answer(told) | {"additionalProperties": True}


def _cache() -> Schema:
    known = ("entries", "tokens", "disk_entries", "disk_bytes")
    model = {
        "name": TEXT,
        "answered": FLAG,
        **dict.fromkeys(known, or_null(COUNT)),
        "bytes": COUNT,
        "budget_bytes": COUNT,
        "oldest_use_seconds": or_null(NUMBER),
        "lookups": answer({"whole": COUNT, "part": COUNT, "none": COUNT}),
        "reused_tokens": COUNT,
        "computed_tokens": COUNT,
    }
    disk = answer({"entries": COUNT, "bytes": COUNT})
    return answer({"models": listed(answer(model)), "disk": disk})


def _story() -> Schema:
    times = ("judged", "admitted", "leased", "accepted", "first_token", "released", "ended")
    counts = ("prompt_tokens", "cached_tokens", "completion_tokens", "replays", "status", "untold")
    texts = ("id", "path", "model", "want", "user", "code")
    client = answer({"address": TEXT, "key": TEXT, "tenant": TEXT})
    note = {"after": NUMBER, "what": TEXT, "facts": OBJECT}
    return answer(
        {
            **dict.fromkeys(texts, TEXT),
            **dict.fromkeys(times, or_null(NUMBER)),
            **dict.fromkeys(counts, COUNT),
            **dict.fromkeys(("stream", "rated", "loaded"), FLAG),
            **dict.fromkeys(("at", "cost", "prefill_seconds", "decode_seconds"), NUMBER),
            "client": client,
            "generation": COUNT,
            "priority": one_of(PRIORITIES),
            "wished": or_null(one_of(PRIORITIES)),
            "keep_alive": or_null(NUMBER),
            "requests": COUNT,
            "max_tokens": or_null(WHOLE),
            "notes": listed(answer(note)),
            "waits": or_null(TEXT),
            "slow_prompt": or_null(TEXT),
        }
    )
