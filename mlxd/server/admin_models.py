"""What the admin socket serves about models: what there is, what is loaded, what would fit, and
everything that changes it.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aiohttp import web

from mlxd.control import resting
from mlxd.control.resident import Resident
from mlxd.core import manifest
from mlxd.core.errors import InvalidRequest, MlxdError, ModelNotFound
from mlxd.core.models import ModelCard
from mlxd.core.threads import Threads
from mlxd.dialects.fields import Fields
from mlxd.dialects.keep_alive import keep_alive
from mlxd.policy.policy_set import PolicySet
from mlxd.server import load_report, worker_report
from mlxd.server.action import Action, Answer
from mlxd.server.answers import iso
from mlxd.server.edge import MODEL, policies_of
from mlxd.server.endpoints import ASKING, READING, Table
from mlxd.server.intake import read_json
from mlxd.server.parts import Parts
from mlxd.server.pull import Pull, named
from mlxd.server.refusals import note_refusal

Json = dict[str, Any]


class AdminModels:
    """Routes below /admin, and what each does."""

    def __init__(self, parts: Parts, reading: PolicySet) -> None:
        """Bodies are read under `reading`: no policy can lock its operator out."""
        self._parts = parts
        self._reading = reading
        self._threads = Threads("admin")

    def routes(self) -> Table:
        return {
            "/admin/models": (READING, Action(self._list)),
            "/admin/models/show": (READING, Action(self._show)),
            "/admin/models/stderr": (READING, Action(self._stderr)),
            "/admin/models/reset": (ASKING, Action(self._reset)),
            "/admin/ps": (READING, Action(self._ps)),
            "/admin/plan": (ASKING, Action(self._plan)),
            "/admin/load": (ASKING, Action(self._load)),
            "/admin/unload": (ASKING, Action(self._unload)),
            "/admin/copy": (ASKING, Action(self._copy)),
            "/admin/delete": (ASKING, Action(self._delete)),
            "/admin/pull": (ASKING, Pull(self._parts, self._reading)),
        }

    async def _list(self, request: web.BaseRequest) -> Answer:
        policies = policies_of(request)
        cards = await self._parts.catalog.cards(policies)
        loaded = self._loaded()
        return {"models": [self._entry(card, loaded) for card in cards]}, policies.etag

    async def _show(self, request: web.BaseRequest) -> Answer:
        """One that cannot be used is shown too, with the reason."""
        policies = policies_of(request)
        card = await self._found(request.query.get("name", ""), policies)
        pulled = await self._threads.run(manifest.read, Path(card.path))
        shown = self._entry(card, self._loaded()) | {
            "license": card.license.strip().partition("\n")[0],
            "chat_template": bool(card.chat_template),
            "sampling": {k: v for k, v in asdict(card.sampling).items() if v is not None},
            "digest": card.digest,
            "path": card.path,
            "repository": pulled.repo if pulled is not None else "",
            "revision": pulled.revision if pulled is not None else "",
        }
        return shown, policies.etag

    async def _stderr(self, request: web.BaseRequest) -> Answer:
        """The last that its worker said, if it has one; those that ended are among the crashes."""
        policies = policies_of(request)
        card = await self._found(request.query.get("name", ""), policies)
        slots = (s for s in self._parts.supervisor.slots() if s.spec == card.spec and s.alive)
        worker = next((slot.worker for slot in slots), None)
        said = {
            "model": card.name,
            "pid": worker.pid if worker is not None else None,
            "lines": worker.stderr.splitlines() if worker is not None else [],
        }
        return said, policies.etag

    async def _ps(self, request: web.BaseRequest) -> Answer:
        residency, now = self._parts.residency, self._parts.clock.wall()
        models = [
            process(resident, worker.pid if worker is not None else None, now)
            | {"progress": load_report.of(self._parts, resident)}
            for resident in residency.residents()
            if (worker := residency.worker_of(resident)) or resident.loading is not None
        ]
        return {"models": models}, policies_of(request).etag

    async def _plan(self, request: web.BaseRequest) -> Answer:
        policies = policies_of(request)
        name, context = await read_json(request, self._reading, _model_and_context)
        card = await self._parts.catalog.look_up(name, policies)
        return asdict(self._parts.residency.fit(card, policies, context)), policies.etag

    async def _load(self, request: web.BaseRequest) -> Answer:
        policies = policies_of(request)
        name, seconds = await read_json(request, self._reading, _model_and_keep_alive)
        request[MODEL] = name
        try:
            await self._parts.dispatcher.load(name, seconds, policies)
        except MlxdError as error:
            note_refusal(request, self._parts, error)
            raise
        return await self._named(name, policies)

    async def _unload(self, request: web.BaseRequest) -> Answer:
        policies = policies_of(request)
        name = await read_json(request, self._reading, lambda body: named(body, "model"))
        await self._parts.dispatcher.unload(name, policies)
        return await self._named(name, policies)

    async def _reset(self, request: web.BaseRequest) -> Answer:
        """Only what the daemon remembers is forgotten: files and settings are another matter."""
        policies = policies_of(request)
        card = await self._found(request.query.get("name", ""), policies)
        reset = {
            "model": card.name,
            "reset": self._parts.supervisor.reset(card.spec),
            "requests": self._parts.replays.reset(card),
        }
        return reset, policies.etag

    async def _copy(self, request: web.BaseRequest) -> Answer:
        policies = policies_of(request)
        source, destination = await read_json(
            request, self._reading, lambda body: (named(body, "source"), named(body, "destination"))
        )
        card = await self._parts.library.copy(source, destination, policies)
        return {"name": destination, "model": card.name}, policies.etag

    async def _delete(self, request: web.BaseRequest) -> Answer:
        policies = policies_of(request)
        name = await read_json(request, self._reading, lambda body: named(body, "model"))
        await self._parts.library.delete(name, policies)
        return {"name": name}, policies.etag

    async def _named(self, name: str, policies: PolicySet) -> Answer:
        card = await self._parts.catalog.look_up(name, policies)
        return {"name": name, "model": card.name}, policies.etag

    async def _found(self, name: str, policies: PolicySet) -> ModelCard:
        """Raises ModelNotFound, InvalidRequest."""
        if not name.strip():
            raise InvalidRequest("name is required", param="name")
        await self._parts.catalog.cards(policies)
        card = self._parts.catalog.find(name, policies)
        if card is None:
            await self._parts.catalog.look_up(name, policies)  # which says what is near
            raise ModelNotFound(name)
        return card

    def _loaded(self) -> set[str]:
        residency = self._parts.residency
        return {r.spec.path for r in residency.residents() if residency.worker_of(r)}

    def _entry(self, card: ModelCard, loaded: set[str]) -> Json:
        return {
            "name": card.name,
            "size_bytes": card.size_bytes,
            "parameters": card.parameters,
            "quantization": card.quantization,
            "family": card.family,
            "context": card.context,
            "capabilities": list(card.capabilities),
            "modified": iso(card.modified),
            "loaded": card.path in loaded,
            "unavailable": card.unavailable,
            "state": self._state_of(card),
            "draft": card.draft.name if card.draft is not None else "",
            "undrafted": card.undrafted or self._undrafted(card),
        }

    def _undrafted(self, card: ModelCard) -> str:
        """What its worker has found against the model that was to draft."""
        slots = (s for s in self._parts.supervisor.slots() if s.spec == card.spec)
        return next((reason for slot in slots if (reason := worker_report.undrafted(slot))), "")

    def _state_of(self, card: ModelCard) -> str:
        """How far its load is; or, where its worker or its last load has failed, what follows."""
        progress = self._parts.residency.progress_of(card.original)
        slot = worker_report.states(self._parts).get(card.name)
        if slot is not None:
            return resting.words_of(slot)
        if progress is not None:
            return str(progress)
        return self._parts.residency.failed([card]).get(card.name, "")


def process(resident: Resident, pid: int | None, now: float) -> Json:
    """What is in memory, or on its way there; `now` is wall time."""
    left = resident.expires_wall - now if resident.leases == 0 else resident.keep_alive
    return {
        "name": resident.card.name,
        "size_bytes": resident.card.size_bytes,
        "context": resident.card.context,
        "running": resident.leases,
        "loading": resident.loading is not None,
        "pid": pid,
        "expires_in_seconds": None if math.isinf(left) else max(0.0, round(left, 1)),
        "leaving": resident.leaving,
        "uses": resident.use_count,
    }


def _model_and_context(body: Json) -> tuple[str, int | None]:
    context = body.get("context")
    if context is not None and (type(context) is not int or not 0 < context < 2**40):
        raise InvalidRequest("context: expected a number of tokens, at least 1", param="context")
    return named(body, "model"), context


def _model_and_keep_alive(body: Json) -> tuple[str, float | None]:
    def words(path: str, expected: str, value: object) -> str:
        return f"{path}: expected a {expected}"

    return named(body, "model"), keep_alive(Fields(body, words))
