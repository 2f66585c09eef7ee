"""What the page asks once a second, in one answer: cheap enough to be left open for days."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import psutil
from aiohttp import web

from mlxd.policy.policy_set import PolicySet
from mlxd.server import queue_report
from mlxd.server.admin_models import process
from mlxd.server.answers import json_response
from mlxd.server.edge import policies_of
from mlxd.server.endpoints import PartsEndpoint
from mlxd.server.health import health
from mlxd.server.page.assets import check_served, guarded

Json = dict[str, Any]


class StateReport(PartsEndpoint):
    """`GET /ui/state`: /health, and how the daemon does now."""

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        check_served(request)
        await self._parts.unread.refresh()
        return guarded(json_response(self._report(policies_of(request))))

    def _report(self, policies: PolicySet) -> Json:
        parts = self._parts
        stats = queue_report.stats(parts, policies)
        return {
            "health": health(parts, policies),
            "uptime_seconds": round(max(0.0, parts.clock.wall() - self._began), 1),
            "draining": parts.state.draining,
            "slots": {"active": parts.admission.active, "total": parts.admission.slots},
            "queued": stats["queued"],
            "queue_wait_seconds": stats["wait_seconds"],
            "resident": [
                process(resident, None, parts.clock.wall())
                for resident in parts.residency.residents()
                if resident.loading is not None or parts.residency.worker_of(resident)
            ],
            "lately": parts.lately.report(parts.clock.monotonic(), parts.stories.under_way()),
        }

    @cached_property
    def _began(self) -> float:
        """Seconds since the epoch."""
        return psutil.Process().create_time()
