"""What the daemon says of itself: health, liveness, readiness, queue. Reading changes nothing,
except that a stop takes account of who asks /readyz (daemon/ending.py).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

from aiohttp import web

from mlxd import __version__
from mlxd.control.monitors import Readings
from mlxd.control.replay import Quarantined
from mlxd.control.resident import Resident
from mlxd.control.watermarks import Level
from mlxd.core.counts import some
from mlxd.core.instance import authority
from mlxd.core.threads import Threads
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.units import shown
from mlxd.server import adaptive_report, load_report, memory_report, queue_report, worker_report
from mlxd.server.answers import iso, json_response
from mlxd.server.edge import caller_of, policies_of
from mlxd.server.endpoints import PartsEndpoint
from mlxd.server.errors import Render, in_ollama
from mlxd.server.identity import keys_required_of
from mlxd.server.parts import Parts
from mlxd.server.policy_report import summary
from mlxd.server.policy_report import warnings as policy_warnings
from mlxd.server.usable import usable
from mlxd.telemetry import logs
from mlxd.telemetry.metrics import CONTENT_TYPE

Json = dict[str, Any]
_PUBLIC = frozenset(
    ("status", "service", "version", "active_requests", "max_concurrent", "timestamp")
)
"""What a stranger is told of /health."""
_threads = Threads("metrics")
_EVENTS = 5
"""Of the last, to be seen at a glance."""
_LIST = "mlxd models list tells all"
_EXPLAIN = "mlxd policy explain models tells all"


class Report(PartsEndpoint):
    """An endpoint that renders a function of the daemon's state and the policies as JSON."""

    def __init__(self, parts: Parts, report: Callable[[Parts, PolicySet], Json]) -> None:
        super().__init__(parts)
        self._report = report

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        return json_response(self._report(self._parts, policies_of(request)))


class FreshReport(Report):
    """One that has `warnings`, of now."""

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        await self._parts.unread.refresh()
        return await super().__call__(request)


class Health(PartsEndpoint):
    """`GET /health`, which needs no API key: without one, where they are required, it says nothing
    of models, clients and this machine.
    """

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        await self._parts.unread.refresh()
        policies = policies_of(request)
        report = health(self._parts, policies)
        if keys_required_of(request, policies) and not caller_of(request).key:
            report = {name: value for name, value in report.items() if name in _PUBLIC}
        return json_response(report)


class Scrape(PartsEndpoint):
    """`GET /metrics`: everything that is counted, in Prometheus' text format."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self._served: asyncio.Future[bytes] | None = None
        """One at a time, whoever asks and hangs up."""

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        metrics = self._parts.metrics
        if self._served is None or self._served.done():
            self._served = asyncio.ensure_future(_threads.run_or_here(metrics.render_served))
        body = await asyncio.shield(self._served) + metrics.render()
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})


class Live:
    """200 as long as the event loop turns; never depends on a model or on memory."""

    render_error: Render = staticmethod(in_ollama)

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text="ok\n")


class Ready(PartsEndpoint):
    """200 when traffic should come here; 503 until then, while draining, in an emergency, and
    whenever memory has generations refused.
    """

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        self._parts.state.probed = self._parts.clock.monotonic()
        reason = self._reason_not_to_be()
        if not reason:
            return web.Response(text="ok\n")
        return web.Response(status=503, text=f"{reason}\n", headers={"Retry-After": "1"})

    def _reason_not_to_be(self) -> str:
        if not self._parts.state.ready:
            return "draining" if self._parts.state.draining else "starting"
        if self._parts.starts.held:
            return self._parts.starts.reason
        guard = self._parts.guard
        stopped = guard.level is Level.EMERGENCY or "stop_admission" in guard.lasting
        return "out of memory" if stopped else ""


class Root(PartsEndpoint):
    """`GET /`: the words health scripts grep for, as JSON, and what models its client may use."""

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        known = [card for card in self._parts.catalog.known() if not card.unavailable]
        names = [card.name for card in usable(known, request)]
        return json_response(_root(self._parts, policies_of(request), names))


def _root(parts: Parts, policies: PolicySet, models: list[str]) -> Json:
    readings = parts.guard.read()
    return {
        "message": "Ollama is running",
        "status": _status(parts, policies, readings),
        "service": "mlxd",
        "version": __version__,
        "models_loaded": len(_loaded(parts)),
        "available_models": models,
        "active_requests": parts.admission.active,
        "max_concurrent": policies.limits.concurrency.max_in_flight,
        **queue_report.places(parts, policies),
        "memory": memory_report.summary(policies, readings.memory),
    }


def health(parts: Parts, policies: PolicySet) -> Json:
    """`GET /health`: always 200 while alive."""
    readings = parts.guard.read()
    rules = [rule for rule in policies.limits.rate_limit if rule.mode == "enforce"]
    residents = [
        r for r in parts.residency.residents() if r.loading or parts.residency.worker_of(r)
    ]
    return {
        "status": _status(parts, policies, readings),
        "service": "mlxd",
        "version": __version__,
        "active_requests": parts.admission.active,
        "max_concurrent": policies.limits.concurrency.max_in_flight,
        **queue_report.hints(parts, policies),
        "active_model_requests": dict(parts.admission.active_by_model()),
        "waiting_requests": _waiting(parts),
        "memory": memory_report.details(parts, policies, readings),
        "models_cached": len(_loaded(parts)),
        "total_models": len(parts.catalog.known()),
        "cached_models": [_cached_model(parts, resident) for resident in residents],
        "workers": worker_report.workers(parts),
        "spares": load_report.spares(parts),
        "loading_models": [r.card.name for r in residents if r.loading],
        "default_model": parts.catalog.default(policies),
        "rate_limit": {
            "max_per_window": rules[0].requests if rules else None,
            "window_seconds": float(rules[0].window) if rules else None,
        },
        "adaptive": adaptive_report.details(parts),
        "policy": summary(parts, policies),
        "quarantined_requests": [_quarantined(one) for one in parts.replays.quarantined()],
        "pid": os.getpid(),
        "warnings": _warnings(parts, policies, readings),
        "timestamp": iso(parts.clock.wall()),
    }


def owners(parts: Parts, policies: PolicySet) -> Json:
    """`GET /admin/health`: what the daemon's owner may know, too."""
    last = parts.events.since(parts.events.last_id - _EVENTS)
    return {
        **health(parts, policies),
        "quarantined_requests": [
            {**_quarantined(one), "client": one.client} for one in parts.replays.quarantined()
        ],
        "recent_events": [event.as_json() for event in last],
        "log": logs.place(),
    }


def queue_stats(parts: Parts, policies: PolicySet) -> Json:
    """`GET /queue/stats`: who waits for a slot, and what those wait for that have one."""
    return {**queue_report.stats(parts, policies), "waiting": _waiting(parts)}


def _waiting(parts: Parts) -> Json:
    """How many of the active requests do not run, and what they wait for."""
    return {"gate": parts.replays.waiting, **parts.residency.waiting()}


def chat_status(parts: Parts, policies: PolicySet) -> Json:
    """`GET /api/chat/status`: what the old backend's front end reads."""
    listen = policies.server.listen
    return {
        "mlx": {
            "status": _status(parts, policies, parts.guard.read()),
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
        "active_requests": parts.admission.active_by_model()[resident.card.original],
        "is_loading": resident.loading is not None,
        "loading": load_report.of(parts, resident),
        "memory_bytes": memory_report.of_worker(parts.residency.worker_of(resident)),
    }


def _quarantined(one: Quarantined) -> Json:
    """Nothing of what it says, and not who asked."""
    return {
        "model": one.model,
        "since": iso(one.since),
        "until": iso(one.until),
    }


def _status(parts: Parts, policies: PolicySet, readings: Readings) -> str:
    """By the raw readings; what is done about them follows other rules."""
    if parts.starts.held:
        return "critical"
    full = memory_report.status(policies, readings, parts.guard.pressure)
    if full == "critical":
        return full
    ill = _failed(parts) or _held(parts) or worker_report.states(parts)
    if full or ill or not parts.reloader.last.ok:
        return "warning"
    if not parts.admission.free_slots:
        return "degraded"
    return "healthy"


def _warnings(parts: Parts, policies: PolicySet, readings: Readings) -> list[str]:
    warnings = [*parts.state.warnings, *parts.unread.words, *policy_warnings(parts, policies)]
    warnings += [_stopping(parts, policies)] if parts.state.draining else []
    warnings += [parts.starts.reason] if parts.starts.held else []
    warnings += parts.records.warnings()
    warnings += logs.warnings()
    warnings += [parts.usage.failure] if parts.usage.failure else []
    warnings += parts.keys.warnings(policies)
    warnings += parts.preloader.warnings()
    warnings += parts.guard.warnings()
    warnings += parts.tracing.warnings()
    warnings += [words for sink in parts.state.sinks for words in sink()]
    if readings.memory is None:
        warnings.append("memory cannot be read: protection of memory is limited")
    warnings += some(_failed(parts).values(), f"{{}} more models failed to load: {_LIST}")
    warnings += some(_held(parts), f"{{}} more are served as before an edit: {_EXPLAIN}")
    warnings += _replaced(parts)
    warnings += some(_outdated(parts), "{} more are served by an earlier revision")
    warnings += some(worker_report.warnings(parts), "and {} more of workers")
    warnings += parts.supervisor.prefixes.warnings()
    warnings += some(_unavailable(parts), f"{{}} more models are unavailable: {_LIST}")
    warnings += some(_undrafted(parts), f"no model drafts for {{}} more: {_LIST}")
    return warnings


def _stopping(parts: Parts, policies: PolicySet) -> str:
    active, grace = parts.admission.active, shown(policies.server.drain.grace)
    return f"the daemon is stopping: {active} under way, for {grace} at most (server.drain.grace)"


def _failed(parts: Parts) -> dict[str, str]:
    return parts.residency.failed(parts.catalog.known())


def _held(parts: Parts) -> list[str]:
    """A copy is told of with what it is a copy of."""
    return [
        f"model {card.name} is served as it was loaded before an edit: {card.held}"
        for card in parts.catalog.known()
        if card.held and not card.copy_of
    ]


def _outdated(parts: Parts) -> list[str]:
    return [
        f"model {card.name} is served by an earlier revision; of the one that counts: "
        f"{card.outdated}"
        for card in parts.catalog.known()
        if card.outdated and not card.copy_of
    ]


def _unavailable(parts: Parts) -> list[str]:
    return [
        f"model {card.name} is unavailable: {card.unavailable}"
        for card in parts.catalog.unavailable()
    ]


def _undrafted(parts: Parts) -> list[str]:
    return [
        f"no model drafts for {card.name}: {card.undrafted}"
        for card in parts.catalog.known()
        if card.undrafted
    ]


def _replaced(parts: Parts) -> list[str]:
    """What is in memory, and no longer on the disk."""
    residents = parts.residency.residents()
    in_memory = [one.card for one in residents if parts.residency.serves(one.spec)]
    paths = {card.path for card in in_memory}
    on_disk = [card for card in parts.catalog.known() if card.path in paths]
    digests = {card.spec: card.digest for card in on_disk if not card.unavailable}
    return [
        f"model {card.name} is served as it was loaded: its weights have been replaced since,"
        f" and are loaded once it leaves memory (mlxd unload {card.name})"
        for card in in_memory
        if digests.get(card.spec, card.digest) != card.digest
    ]
