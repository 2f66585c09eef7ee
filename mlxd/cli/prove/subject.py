"""The daemon that is to be proved, seen from its admin socket."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil

from mlxd.cli.admin import AdminClient, Refused
from mlxd.cli.prove.own import Own
from mlxd.control.scan import GUIDE

Json = dict[str, Any]

_LOOK_SECONDS = 0.05


class CannotProve(Exception):
    """Why not, for people."""


@dataclass(frozen=True, slots=True)
class Subject:
    admin: AdminClient
    pid: int
    own: Own | None = None
    """None: it ran before, and may serve others."""

    def health(self) -> Json:
        return self.admin.get("/admin/health")

    def process(self, model: str) -> Json:
        """As `mlxd ps` has it; empty when it is not in memory."""
        models = self.admin.get("/admin/ps")["models"]
        return next((one for one in models if one["name"] == model), {})

    def worker(self, model: str) -> Json:
        """As /health has it; empty when there is none."""
        return next((one for one in self.health()["workers"] if one["model"] == model), {})

    def resident(self, model: str) -> int:
        """The pid of the worker that has it in memory. Raises CannotProve."""
        pid = self.process(model).get("pid")
        if not isinstance(pid, int):
            raise CannotProve(f"{model} is not in memory")
        return pid

    def owns(self, pid: int) -> bool:
        """Whether that process is a worker of this daemon, as the system has it."""
        try:
            process = psutil.Process(pid)
            return process.ppid() == self.pid and "mlxd.worker" in process.cmdline()
        except psutil.Error:
            return False

    def last_event(self) -> int:
        events = self.health()["recent_events"]
        return int(events[-1]["id"]) if events else 0

    def events(self, since: int) -> list[Json]:
        found: list[Json] = self.admin.get("/admin/events", since=str(since))["events"]
        return found

    def story(self, id: str) -> Json:
        """What the daemon remembers of a request; empty where it remembers none."""
        try:
            found: list[Json] = self.admin.get(f"/admin/requests/{id}")["requests"]
        except Refused:
            return {}
        return found[-1] if found else {}

    def chosen(self, name: str) -> Json:
        """The model of that name; without one the smallest that answers, the guide last."""
        if name:
            model = self.admin.get("/admin/models/show", name=name)
            if model["unavailable"]:
                raise CannotProve(f"{name} cannot be used: {model['unavailable']}")
            return model
        models = [
            one
            for one in self.admin.get("/admin/models")["models"]
            if not one["unavailable"] and "completion" in one["capabilities"]
        ]
        if not models:
            raise CannotProve("there is no model that answers")
        found: Json = min(models, key=lambda one: (one["name"] == GUIDE, one["size_bytes"]))
        return found


def eventually(true: Callable[[], bool], seconds: float) -> bool:
    """Whether it has become true in that time."""
    until = time.monotonic() + seconds
    while not true():
        if time.monotonic() > until:
            return False
        time.sleep(_LOOK_SECONDS)
    return True


def gone(pid: int) -> bool:
    """Nothing is left of that process but what its parent has yet to read."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False
