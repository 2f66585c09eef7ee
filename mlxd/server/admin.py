"""The admin side: the policies in force and everything that changes them, and models
(admin_models.py, admin_bench.py).

The admin socket serves it to its owner, and over TCP administrators alone reach it (guarded.py). An
answer carries the policies' `ETag`; what changes them takes `If-Match`, so that nobody undoes what
he has not seen.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from mlxd.core.counts import whole
from mlxd.core.errors import InternalError, InvalidRequest, Overloaded
from mlxd.core.threads import Threads
from mlxd.policy.explain import NoSuchKey, explain, newly_hidden
from mlxd.policy.history import History, story
from mlxd.policy.load import Override, load
from mlxd.policy.outcome import error_json
from mlxd.policy.policy_set import FILES, PolicySet
from mlxd.policy.reload import Plan
from mlxd.server import health
from mlxd.server.action import Action, Answer
from mlxd.server.admin_bench import AdminBench
from mlxd.server.admin_cache import AdminCache
from mlxd.server.admin_models import AdminModels
from mlxd.server.admin_requests import AdminRequests
from mlxd.server.app import Routes
from mlxd.server.edge import policies_of
from mlxd.server.effects import Effects
from mlxd.server.endpoints import ASKING, READING
from mlxd.server.events import EventStream
from mlxd.server.intake import read_json
from mlxd.server.parts import Parts
from mlxd.server.peer import asker_of
from mlxd.server.policy_report import effective, held_settings, refusals, summary
from mlxd.server.usage_report import usage_of

Json = dict[str, Any]

_MOST_DIGITS = 9
_USUAL = 20
"""Crashes."""


class Admin:
    """The admin side's routes, and what each does."""

    def __init__(
        self,
        parts: Parts,
        history: History,
        effects: Effects,
        reset_starts: Callable[[], Awaitable[bool]],
    ) -> None:
        self._parts = parts
        self._history = history
        self._effects = effects
        self._reset_starts = reset_starts
        self._threads = Threads("admin")
        self._reading = load()
        """Bodies are read under the defaults: no policy can lock its operator out."""
        self._models = AdminModels(parts, self._reading)

    def routes(self) -> Routes:
        table = {
            "/admin/policy": (READING, self._status),
            "/admin/policy/effective": (READING, self._effective),
            "/admin/policy/explain": (READING, self._explain),
            "/admin/policy/history": (READING, self._list_history),
            "/admin/policy/check": (ASKING, self._check),
            "/admin/policy/plan": (ASKING, self._plan),
            "/admin/policy/reload": (ASKING, self._reload),
            "/admin/policy/rollback": (ASKING, self._rollback),
            "/admin/keys/reload": (ASKING, self._reload_keys),
            "/admin/service/reset": (ASKING, self._reset_service),
            "/admin/usage": (READING, self._usage),
            "/admin/crashes": (READING, self._crashes),
        }
        actions = {path: (methods, Action(act)) for path, (methods, act) in table.items()}
        events = EventStream(self._parts, owner=True)
        report = health.FreshReport(self._parts, health.owners)
        others = {
            **self._models.routes(),
            **AdminBench(self._parts, self._reading).routes(),
            **AdminRequests(self._parts).routes(),
            **AdminCache(self._parts).routes(),
            "/admin/events": (READING, events),
            "/admin/health": (READING, report),
        }
        return Routes({**actions, **others})

    async def _status(self, request: web.BaseRequest) -> Answer:
        policies = policies_of(request)
        last = self._parts.reloader.last.as_json()
        return summary(self._parts, policies) | {"last_outcome": last}, policies.etag

    async def _effective(self, request: web.BaseRequest) -> Answer:
        policies = policies_of(request)
        values = await self._explained(policies, "")
        return effective(self._parts, policies, values), policies.etag

    async def _explain(self, request: web.BaseRequest) -> Answer:
        policies, key = policies_of(request), request.query.get("key", "")
        try:
            values = await self._explained(policies, key)
        except NoSuchKey as error:
            raise InvalidRequest(str(error), param="key") from error
        return {"values": values, "errors": refusals(self._parts)}, policies.etag

    async def _explained(self, policies: PolicySet, key: str) -> list[Json]:
        """Beside the event loop, which alone asks the daemon's parts. Raises NoSuchKey."""
        waiting, held = self._parts.reloader.until_restart(), held_settings(self._parts, policies)
        return await self._threads.run(explain, policies, key, waiting, held)

    async def _list_history(self, request: web.BaseRequest) -> Answer:
        policies = policies_of(request)
        kept = await self._threads.run(list, self._history.newest_first())
        body = {"generation": policies.generation, "history": [story(one) for one in kept]}
        return body, policies.etag

    async def _check(self, request: web.BaseRequest) -> Answer:
        return await self._planned(await self._parts.reloader.check())

    async def _plan(self, request: web.BaseRequest) -> Answer:
        """Of an edit, or of going back to a generation."""
        if "gen" in request.query:
            number, force = _wanted(request)
            plan = await self._parts.reloader.plan_rollback(number, force=force)
            return await self._planned(plan)
        files, settings = await read_json(request, self._reading, _candidates)
        return await self._planned(await self._parts.reloader.plan(files, settings))

    async def _reload(self, request: web.BaseRequest) -> Answer:
        etag = request.headers.get("If-Match", "")
        outcome = await self._parts.reloader.reload("admin", asker_of(request), etag=etag)
        return outcome.as_json(), outcome.etag

    async def _rollback(self, request: web.BaseRequest) -> Answer:
        wanted, force = _wanted(request)
        outcome = await self._parts.reloader.rollback(
            wanted, asker_of(request), etag=request.headers.get("If-Match", ""), force=force
        )
        return outcome.as_json(), outcome.etag

    async def _reload_keys(self, request: web.BaseRequest) -> Answer:
        """Read their file now, and policies that wait for a key."""
        keys = self._parts.keys
        try:
            await keys.reload()
        except OSError as error:  # TimeoutError, too
            words = str(error) or "the disk does not answer"
            raise Overloaded(
                f"the file of keys cannot be read now: {words}",
                policy=policies_of(request).line("clients.auth.keys_file"),
                would_pass="the same once that file can be read",
            ) from error
        await self._parts.reloader.look()
        body = {"file": keys.file.reference, "valid": keys.valid(), "problem": keys.problem}
        return body, self._parts.policies.current.etag

    async def _reset_service(self, request: web.BaseRequest) -> Answer:
        return {"was_held": await self._reset_starts()}, policies_of(request).etag

    async def _usage(self, request: web.BaseRequest) -> Answer:
        policies = policies_of(request)
        return usage_of(self._parts.usage, policies), policies.etag

    async def _crashes(self, request: web.BaseRequest) -> Answer:
        wanted = whole(request.query.get("n", str(_USUAL)), _MOST_DIGITS)
        if not wanted:
            raise InvalidRequest("n: expected a whole number, at least 1", param="n")
        try:
            found = await self._threads.run(self._parts.records.crashes)
        except OSError as error:
            words = error.strerror or str(error)
            raise InternalError(f"the records of crashes cannot be read: {words}") from error
        return {"crashes": found[-wanted:][::-1]}, policies_of(request).etag

    async def _planned(self, plan: Plan) -> Answer:
        old, new = plan.old, plan.policies
        report: Json = {
            "valid": new is not None,
            "folder": str(self._parts.reloader.folder or ""),
            "generation": old.generation,
            "errors": [error_json(error) for error in plan.errors],
            "changes": [change.as_json() for change in plan.changes],
            "effects": [],
            "shadowed": [],
            "warnings": [],
        }
        if new is not None:
            report["effects"] = await self._effects.of(old, new, plan.changes)
            report["shadowed"] = newly_hidden(old, new)
            report["warnings"] = [*new.warnings(), *self._parts.expected.slow_models(new)]
        return report, old.etag


def _wanted(request: web.BaseRequest) -> tuple[int, bool]:
    """The generation to go back to, and whether edits may be lost. Raises InvalidRequest."""
    wanted = whole(request.query.get("gen", ""), _MOST_DIGITS)
    if wanted is None:
        raise InvalidRequest("gen is required: the number of a generation", param="gen")
    return wanted, request.query.get("force") == "1"


def _candidates(body: Json) -> tuple[Mapping[str, bytes], list[Override]]:
    """The files of a plan, and single values over them. Raises InvalidRequest."""
    files, values = body.get("files", {}), body.get("set", {})
    for name, given in (("files", files), ("set", values)):
        texts = given.values() if isinstance(given, dict) else [None]
        if not all(isinstance(text, str) for text in texts) or "" in given:
            raise InvalidRequest(f"{name}: expected a mapping from names to texts", param=name)
    if strange := sorted(set(files) - set(FILES)):
        raise InvalidRequest(f"no policy file is called {strange[0]!r}", param="files")
    contents = {name: text.encode("utf-8", "surrogatepass") for name, text in files.items()}
    return contents, [Override(key, text, "--set", yaml=True) for key, text in values.items()]
