"""Models in memory on the virtual clock: the daemon's own decision who leaves for whom, with the
sizes and load times of the log.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mlxd.control.eviction import Candidate, Plan, Want, plan_eviction, plan_excess
from mlxd.control.inventory import protection_of
from mlxd.control.ledger import PROCESS_BYTES, reserve_of
from mlxd.control.model_settings import settings_of, ttl_for
from mlxd.control.rights import kept_alive
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.schema.clients import Tenant


@dataclass(slots=True, eq=False)
class _Model:
    name: str
    size: int
    keep: float
    """Seconds it stays after its last use; inf for ever."""
    loading: bool = False
    """It takes room, and is ready at `ready`."""
    present: bool = False
    """It is in memory, or on its way there."""
    ready: float = math.inf
    wanted: float | None = None
    """Since when somebody waits for it to be loaded; None: nobody, or it is on its way."""
    asks: float = 0.0
    """Seconds that its next load takes."""
    leases: int = 0
    last_used: float = 0.0
    loaded_at: float = -math.inf
    use_count: int = 0

    @property
    def serves(self) -> bool:
        return self.present and not self.loading

    @property
    def expires(self) -> float:
        return self.last_used + self.keep if self.serves and not self.leases else math.inf


class Shelf:
    """Who is in memory, who waits to be. A scheduler's scene."""

    def __init__(
        self, policies: PolicySet, memory: int, size: Callable[[str], int], first: Iterable[str]
    ) -> None:
        """`first`: models in memory at the beginning. `memory`: bytes, 0: not known."""
        self._policies = policies
        self._memory = memory
        self._size = size
        self._models: dict[str, _Model] = {}
        self._again = math.inf
        """When a load that waits is decided anew, if nothing happens before."""
        self._refused: dict[str, str] = {}
        self.loads: Counter[str] = Counter()
        self.evictions: Counter[str] = Counter()
        for name in first:
            model = self._model(name)
            model.present = True
        self._drop_excess()

    # -- what a scheduler sees

    def in_memory(self, model: str) -> bool:
        found = self._models.get(model)
        return found is not None and found.serves

    def delays_others(self, model: str) -> bool:
        return not self.in_memory(model) and any(map(_serves, self._models.values()))

    # -- what a request does

    def lease(self, name: str, now: float, load_seconds: float) -> bool:
        """Whether it is in memory; else it is loaded, and `advance` says when. `load_seconds`: what
        that takes, should this be the request that has it loaded.
        """
        model = self._model(name)
        model.leases += 1
        model.use_count += 1
        if model.serves:
            return True
        if not model.loading and model.wanted is None:
            model.wanted, model.asks = now, load_seconds
            self._decide(now)
        return False

    def release(self, name: str, now: float, keep_alive: float | None, tenant: Tenant) -> None:
        """`keep_alive` as the log has it: seconds, -1 for ever, None: not said; of this tenant."""
        model = self._model(name)
        model.leases -= 1
        model.last_used = now
        asked = math.inf if keep_alive is not None and keep_alive < 0 else keep_alive
        kept = kept_alive(tenant, asked, self._idles(name))
        if kept is not None:
            model.keep = kept
        if not model.leases and not model.serves and not model.loading:
            model.wanted = None
        self._expire(now)
        self._decide(now)

    def next(self) -> float:
        """When something happens by itself; inf: never. It may be at once."""
        if self._refused:
            return 0.0
        times = [min(m.ready, m.expires) for m in self._models.values()]
        return min([self._again, *times, *(self._gives_up(m) for m in self._models.values())])

    def advance(self, now: float) -> tuple[list[str], dict[str, str]]:
        """Models that are ready; and those that will not be, with the code of the refusal."""
        ready = [model for model in self._models.values() if model.loading and model.ready <= now]
        for model in ready:
            model.loading, model.ready = False, math.inf
            model.loaded_at = model.last_used = now
        self._expire(now)
        for model in self._waiting():
            if self._gives_up(model) <= now:
                self._refuse(model, "memory")
        self._decide(now)
        refused, self._refused = self._refused, {}
        return [model.name for model in ready], refused

    # -- inside

    def _model(self, name: str) -> _Model:
        model = self._models.get(name)
        if model is None:
            model = self._models[name] = _Model(name, self._size(name), self._ttl(name))
        return model

    def _ttl(self, name: str) -> float:
        return math.inf if name in self._policies.models.preload else self._idles(name)

    def _idles(self, name: str) -> float:
        """Seconds that policy lets it idle, were it not preloaded."""
        models = self._policies.models
        return float(ttl_for(settings_of(name, models), models))

    def _waiting(self) -> list[_Model]:
        """In the order in which they came."""
        waiting = [model for model in self._models.values() if model.wanted is not None]
        return sorted(waiting, key=lambda model: model.wanted or 0.0)

    def _gives_up(self, model: _Model) -> float:
        if model.wanted is None:
            return math.inf
        return model.wanted + float(self._policies.timeouts.model_load)

    def _decide(self, now: float) -> None:
        """Begin the loads that may begin; those that never can are refused."""
        self._again = math.inf
        for model in self._waiting():
            if self._loading() >= self._policies.models.load.max_parallel:
                return
            plan = self._plan(model, now)
            if plan.never or (plan.obstacle and self._refuses):
                self._refuse(model, plan.obstacle)
            elif plan.obstacle:
                self._again = plan.at if plan.at is not None else math.inf
                return
            else:
                self._load(model, plan, now)

    def _loading(self) -> int:
        return sum(model.loading for model in self._models.values())

    def _refuse(self, model: _Model, obstacle: str) -> None:
        model.wanted = None
        self._refused[model.name] = "models_busy" if obstacle == "count" else "insufficient_memory"

    @property
    def _refuses(self) -> bool:
        return self._policies.memory.reserve.when_full == "refuse"

    def _plan(self, model: _Model, now: float) -> Plan:
        present = [m for m in self._models.values() if m.present]
        free = None
        if self._memory:
            taken = sum(m.size + PROCESS_BYTES for m in present)
            free = self._memory - reserve_of(self._policies.memory, self._memory) - taken
        want = self._want(model.size + PROCESS_BYTES, free, model.size, 1)
        candidates = [self._candidate(m) for m in present]
        return plan_eviction(candidates, want, protection_of(self._policies), now)

    def _want(self, size: int, free: int | None, weights: int, models: int) -> Want:
        count, most = self._policies.models.max_loaded, self._policies.models.max_loaded_bytes
        return Want(
            bytes=size,
            free=free,
            weights=weights,
            models=models,
            max_models=None if count == "auto" else count,
            max_weights=None if most == "auto" else int(most),
        )

    def _candidate(self, model: _Model) -> Candidate:
        own = settings_of(model.name, self._policies.models)
        return Candidate(
            key=model.name,
            frees=model.size + PROCESS_BYTES,
            weights=model.size,
            in_use=model.leases > 0 or model.loading,
            last_used=model.last_used,
            loaded_at=model.loaded_at,
            use_count=model.use_count,
            pinned=own is not None and own.pinned,
            preloaded=model.name in self._policies.models.preload,
            priority=own.priority if own is not None else "normal",
        )

    def _load(self, model: _Model, plan: Plan, now: float) -> None:
        for victim in plan.victims:
            self._evict(str(victim))
        model.present = model.loading = True
        model.ready, model.wanted = now + model.asks, None
        model.keep = self._ttl(model.name)
        self.loads[model.name] += 1

    def _evict(self, name: str) -> None:
        self._models[name].present = False
        self.evictions[name] += 1

    def _expire(self, now: float) -> None:
        """What has idled out goes; nobody calls that an eviction."""
        for model in self._models.values():
            if model.expires <= now:
                model.present = False

    def _drop_excess(self) -> None:
        present = [self._candidate(m) for m in self._models.values() if m.present]
        want = self._want(0, None, 0, 0)
        for victim in plan_excess(present, want, protection_of(self._policies), math.inf).victims:
            self._models[str(victim)].present = False


def _serves(model: _Model) -> bool:
    return model.serves
