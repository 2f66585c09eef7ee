"""What the admin socket serves about beginnings of prompts that are kept: how many, and that they
are forgotten.
"""

from __future__ import annotations

from aiohttp import web

from mlxd.control.worker import Worker
from mlxd.server import cache_report
from mlxd.server.action import Action, Answer
from mlxd.server.edge import policies_of
from mlxd.server.endpoints import READING, REMOVING, Table
from mlxd.server.parts import Parts


class AdminCache:
    """One route: GET tells, DELETE forgets."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def routes(self) -> Table:
        return {"/admin/cache": (READING | REMOVING, Action(self._act))}

    async def _act(self, request: web.BaseRequest) -> Answer:
        """Of one model, or of all in memory. Raises ModelNotFound."""
        policies = policies_of(request)
        workers = await self._workers(request)
        if request.method == "DELETE":
            disk = request.query.get("disk") == "1"
            models = await cache_report.clear(self._parts, workers, disk=disk)
            if disk and not request.query.get("model"):
                await self._parts.supervisor.prefixes.clear()
        else:
            models = await cache_report.stats(self._parts, workers)
        return {"models": models, "disk": await cache_report.disk(self._parts)}, policies.etag

    async def _workers(self, request: web.BaseRequest) -> list[Worker]:
        residency, name = self._parts.residency, request.query.get("model", "")
        residents = sorted(residency.residents(), key=lambda resident: resident.card.name)
        if name:
            card = await self._parts.catalog.resolve(name, policies_of(request))
            residents = [one for one in residents if one.spec == card.spec]
        serving = (residency.worker_of(resident) for resident in residents)
        return [worker for worker in serving if worker is not None]
