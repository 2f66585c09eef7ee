"""The bodies of mlxd's own answers to clients."""

from __future__ import annotations

from typing import get_args

from mlxd.control.adaptive import AIMS
from mlxd.control.breaker import State
from mlxd.control.load_progress import Stage
from mlxd.control.watermarks import Level
from mlxd.core.caller import PRIORITIES
from mlxd.dialects.ollama.shapes import found_as
from mlxd.dialects.shaping import (
    COUNT,
    FLAG,
    NUMBER,
    OBJECT,
    TEXT,
    TEXTS,
    TIME,
    Schema,
    Shapes,
    always,
    answer,
    listed,
    mapping,
    one_of,
    or_null,
    refer,
)
from mlxd.policy.outcome import Result, Trigger
from mlxd.telemetry.events import LOST, TYPES

_STATUS = one_of(("healthy", "degraded", "warning", "critical"))


def shapes() -> Shapes:
    return {
        "Root": _root(),
        "Health": health(),
        **_memory(),
        **_models(),
        "PolicySummary": answer(policy_summary()),
        "QueueStats": _queue_stats(),
        "ChatStatus": answer({"mlx": answer({"status": _STATUS, "url": TEXT})}),
        "Event": answer(
            {
                "id": COUNT,
                "at": NUMBER,
                "type": one_of((*TYPES, LOST)),
                "message": TEXT,
                "data": OBJECT,
            }
        ),
        "Cloud": answer({"cloud": answer({"disabled": always(True), "source": always("none")})}),
        "NoAccount": answer({"error": TEXT}, {"signin_url": TEXT}),
        "Model": _model(),
    }


def _head() -> dict[str, Schema]:
    """What /health tells everybody."""
    return {
        "status": _STATUS,
        "service": always("mlxd"),
        "version": TEXT,
        "active_requests": COUNT,
        "max_concurrent": COUNT,
    }


def _places() -> dict[str, Schema]:
    return {"free_slots": COUNT, "queue": answer({"waiting": COUNT, "max_waiting": COUNT})}


def _waiting() -> Schema:
    return answer({"gate": COUNT, "load": COUNT, "memory": COUNT})


def _root() -> Schema:
    said = {"message": always("Ollama is running"), "models_loaded": COUNT}
    return answer(
        said | _head() | _places() | {"available_models": TEXTS, "memory": refer("MemorySummary")}
    )


def health(more: dict[str, Schema] | None = None) -> Schema:
    """Who needs a key and has none is told the first ones alone; `more`: what its owner is told."""
    waits = answer(dict.fromkeys(PRIORITIES, NUMBER))
    rate = answer({"max_per_window": or_null(COUNT), "window_seconds": or_null(NUMBER)})
    return answer(
        _head() | {"timestamp": TIME},
        {
            **_places(),
            "expected_wait_seconds": waits,
            "active_model_requests": mapping(COUNT),
            "waiting_requests": _waiting(),
            "memory": refer("Memory"),
            "models_cached": COUNT,
            "total_models": COUNT,
            "cached_models": listed(refer("CachedModel")),
            "workers": listed(refer("Worker")),
            "spares": listed(refer("Spare")),
            "loading_models": TEXTS,
            "default_model": or_null(TEXT),
            "rate_limit": rate,
            "adaptive": or_null(_adaptive()),
            "policy": refer("PolicySummary"),
            "quarantined_requests": listed(quarantined()),
            "pid": COUNT,
            "warnings": TEXTS,
            **(more or {}),
        },
    )


def _adaptive() -> Schema:
    measured = answer({}, dict.fromkeys(AIMS, NUMBER))
    missed, sheds = listed(one_of(AIMS)), listed(one_of(PRIORITIES))
    return answer({"limit": COUNT, "measured": measured, "missed": missed, "sheds": sheds})


def quarantined(more: dict[str, Schema] | None = None) -> Schema:
    """`more`: what the daemon's owner is told."""
    return answer({"model": TEXT, "since": TIME, "until": TIME, **(more or {})})


def _memory() -> Shapes:
    """Null where the system gives no reading."""
    marks = ("warning", "critical")
    summary = {
        **dict.fromkeys(("used_percent", "available_gb", "total_gb"), or_null(NUMBER)),
        **{f"{mark}_threshold": NUMBER for mark in marks},
    }
    return {
        "MemorySummary": answer(summary),
        "Memory": answer(
            {
                **summary,
                "emergency_threshold": NUMBER,
                "swap_used_gb": or_null(NUMBER),
                "swap_total_gb": or_null(NUMBER),
                "level": one_of(level.word for level in Level),
                "monitors": mapping(NUMBER),
            }
        ),
    }


def _models() -> Shapes:
    held = ("active", "cache", "peak", "prefix", "prefix_budget")
    stages = [stage for part in get_args(Stage) for stage in (get_args(part) or (part,))]
    loading = {"share": NUMBER, "seconds_left": or_null(NUMBER), "words": TEXT}
    return {
        "Loading": answer({"stage": one_of(stages)} | loading),
        "CachedModel": answer(
            {
                "name": TEXT,
                "use_count": COUNT,
                "last_used": or_null(TIME),
                "load_time_seconds": NUMBER,
                "active_requests": COUNT,
                "is_loading": FLAG,
                "loading": or_null(refer("Loading")),
                "memory_bytes": or_null(
                    answer({"budget": or_null(COUNT), **dict.fromkeys(held, COUNT)})
                ),
            }
        ),
        "Worker": answer(
            {
                "model": TEXT,
                "state": one_of(state.value for state in State),
                "pid": or_null(COUNT),
                "failures": COUNT,
                "restarts": COUNT,
                "next_start_in": or_null(NUMBER),
                "reason": TEXT,
            }
        ),
        "Spare": answer({"pid": COUNT, "state": one_of(("ready", "starting")), "bytes": COUNT}),
    }


def policy_summary() -> dict[str, Schema]:
    reload = {
        "id": COUNT,
        "result": one_of(get_args(Result)),
        "trigger": one_of(get_args(Trigger)),
        "at": TIME,
    }
    return {
        "folder": TEXT,
        "source": TEXT,
        "generation": COUNT,
        "hash": TEXT,
        "last_reload": answer(reload),
        **dict.fromkeys(("errors", "pending_restart", "shadowed"), TEXTS),
        "watching": FLAG,
    }


def _queue_stats() -> Schema:
    totals = ("total_queued", "total_processed", "total_expired", "total_rejected")
    by_class = answer(dict.fromkeys((*PRIORITIES, "1", "2", "3"), COUNT))
    stats = dict.fromkeys(totals, COUNT) | {"by_priority": by_class}
    return answer(
        {
            "active_requests": COUNT,
            "max_concurrent": COUNT,
            "queue_size": COUNT,
            "max_queue_size": COUNT,
            "queued": answer(dict.fromkeys(PRIORITIES, COUNT)),
            "waiting": _waiting(),
            "stats": answer(stats),
            "is_processing": FLAG,
            "wait_seconds": answer({"p50": NUMBER, "p99": NUMBER}),
        }
    )


def _model() -> Schema:
    return answer(
        {
            "name": TEXT,
            "path": TEXT,
            "exists": always(True),
            "loaded": FLAG,
            "alias_of": or_null(TEXT),
            "size": COUNT,
            "digest": TEXT,
            "context_length": COUNT,
            "quantization": TEXT,
            "parameters": COUNT,
            **found_as(),
        }
    )
