"""What the daemon says of itself: health, liveness, readiness, queue. Reading changes nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from aiohttp import web

from mlxd import __version__
from mlxd.control.memory import MemoryReading
from mlxd.control.residency import Resident
from mlxd.core.instance import authority
from mlxd.policy.policy_set import PolicySet
from mlxd.server.answers import iso, json_response
from mlxd.server.edge import policies_of
from mlxd.server.errors import Render, in_ollama
from mlxd.server.parts import Parts
from mlxd.server.policy_report import summary
from mlxd.server.policy_report import warnings as policy_warnings
from mlxd.telemetry.metrics import CONTENT_TYPE

Json = dict[str, Any]
_GIB = 2**30


class Report:
    """An endpoint that renders a function of the policies and the daemon's state as JSON."""

    render_error: Render = staticmethod(in_ollama)

    def __init__(self, report: Callable[[PolicySet], Json]) -> None:
        self._report = report

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        return json_response(self._report(policies_of(request)))


class Scrape:
    """`GET /metrics`: everything that is counted, in Prometheus' text format."""

    render_error: Render = staticmethod(in_ollama)

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        body = self._parts.metrics.render()
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})


class Live:
    """200 as long as the event loop turns; never depends on a model or on memory."""

    render_error: Render = staticmethod(in_ollama)

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text="ok\n")


class Ready:
    """200 when traffic should come here; 503 until then and while draining."""

    render_error: Render = staticmethod(in_ollama)

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        if self._parts.state.ready:
            return web.Response(text="ok\n")
        reason = "draining" if self._parts.admission.draining else "starting"
        return web.Response(status=503, text=f"{reason}\n", headers={"Retry-After": "1"})


def root(parts: Parts, policies: PolicySet) -> Json:
    """`GET /`: the words health scripts grep for, as JSON."""
    reading = parts.read_memory()
    return {
        "message": "Ollama is running",
        "status": _status(parts, policies, reading),
        "service": "mlxd",
        "version": __version__,
        "models_loaded": len(_loaded(parts)),
        "available_models": [c.name for c in parts.catalog.known() if not c.unavailable],
        "active_requests": parts.admission.active,
        "max_concurrent": policies.limits.concurrency.max_in_flight,
        "memory": _memory(policies, reading),
    }


def health(parts: Parts, policies: PolicySet) -> Json:
    """`GET /health`: always 200 while alive."""
    reading = parts.read_memory()
    rules = [rule for rule in policies.limits.rate_limit if rule.mode == "enforce"]
    residents = [
        r for r in parts.residency.residents() if r.loading or parts.residency.worker_of(r)
    ]
    return {
        "status": _status(parts, policies, reading),
        "service": "mlxd",
        "version": __version__,
        "active_requests": parts.admission.active,
        "max_concurrent": policies.limits.concurrency.max_in_flight,
        "active_model_requests": dict(parts.admission.active_by_model()),
        "memory": _memory(policies, reading),
        "models_cached": len(_loaded(parts)),
        "total_models": len(parts.catalog.known()),
        "cached_models": [_cached_model(parts, resident) for resident in residents],
        "loading_models": [r.card.name for r in residents if r.loading],
        "default_model": parts.catalog.default(policies),
        "rate_limit": {
            "max_per_window": rules[0].requests if rules else None,
            "window_seconds": float(rules[0].window) if rules else None,
        },
        "policy": summary(parts, policies),
        "pid": os.getpid(),
        "warnings": _warnings(parts, policies, reading),
        "timestamp": iso(parts.clock.wall()),
    }


def queue_stats(parts: Parts, policies: PolicySet) -> Json:
    """`GET /queue/stats`. Nothing waits yet: a request runs at once or is refused."""
    concurrency = policies.limits.concurrency
    totals = parts.admission.totals
    return {
        "active_requests": parts.admission.active,
        "max_concurrent": concurrency.max_in_flight,
        "queue_size": 0,
        "max_queue_size": 0,
        "stats": {
            "total_queued": 0,
            "total_processed": totals.processed,
            "total_expired": 0,
            "total_rejected": totals.rejected,
            "by_priority": {
                "high": 0,
                "medium": totals.processed,
                "low": 0,
                "1": 0,
                "2": totals.processed,
                "3": 0,
            },
        },
        "is_processing": parts.admission.active > 0,
        "wait_seconds": {"p50": 0.0, "p99": 0.0},
    }


def chat_status(parts: Parts, policies: PolicySet) -> Json:
    """`GET /api/chat/status`: what the old backend's front end reads."""
    listen = policies.server.listen
    return {
        "mlx": {
            "status": _status(parts, policies, parts.read_memory()),
            "url": f"http://{authority(listen.host, listen.port)}",
        }
    }


def _loaded(parts: Parts) -> list[Resident]:
    return [r for r in parts.residency.residents() if parts.residency.worker_of(r)]


def _cached_model(parts: Parts, resident: Resident) -> Json:
    return {
        "name": resident.card.name,
        "use_count": resident.use_count,
        "last_used": iso(resident.last_used_wall) if resident.last_used_wall else None,
        "load_time_seconds": round(resident.load_seconds, 3),
        "active_requests": parts.admission.active_by_model()[resident.card.name],
        "is_loading": resident.loading is not None,
    }


def _memory(policies: PolicySet, reading: MemoryReading | None) -> Json:
    marks = policies.memory.watermarks
    return {
        "used_percent": round(reading.used_percent, 1) if reading else None,
        "available_gb": round(reading.available / _GIB, 2) if reading else None,
        "total_gb": round(reading.total / _GIB, 2) if reading else None,
        "warning_threshold": 100.0 * float(marks.warning.enter),
        "critical_threshold": 100.0 * float(marks.critical.enter),
    }


def _status(parts: Parts, policies: PolicySet, reading: MemoryReading | None) -> str:
    """By the raw reading; what is done about it follows other rules."""
    marks = policies.memory.watermarks
    used = reading.used_percent if reading else 0.0
    if used > 100.0 * float(marks.critical.enter):
        return "critical"
    refused = not parts.reloader.last.ok
    if used >= 100.0 * float(marks.warning.enter) or _failed(parts) or refused:
        return "warning"
    if parts.admission.active >= policies.limits.concurrency.max_in_flight:
        return "degraded"
    return "healthy"


def _warnings(parts: Parts, policies: PolicySet, reading: MemoryReading | None) -> list[str]:
    warnings = [*parts.state.warnings, *policy_warnings(parts, policies)]
    warnings += parts.preloader.warnings()
    if reading is None:
        warnings.append("memory cannot be read: protection of memory is limited")
    warnings += _failed(parts).values()
    warnings += [
        f"model {card.name} is unavailable: {card.unavailable}"
        for card in parts.catalog.known()
        if card.unavailable and not card.foreign
    ]
    return warnings


def _failed(parts: Parts) -> dict[str, str]:
    return parts.residency.failed(parts.catalog.known())
