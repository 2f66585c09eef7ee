"""What other policies would do to the models in memory, in words. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mlxd.control.catalog import Catalog
from mlxd.control.model_settings import (
    HOW_TO_LOAD,
    settings_for,
    settings_of,
    ttl_for,
    ways_of_loading,
)
from mlxd.control.names import Names
from mlxd.control.residency import Residency
from mlxd.control.resident import Resident
from mlxd.control.succession import Fate, Succession
from mlxd.core.counts import plural
from mlxd.core.models import ModelCard
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.schema import Model, Models
from mlxd.policy.strict_yaml import dotted
from mlxd.policy.units import KeepFor


async def effects(
    catalog: Catalog, residency: Residency, old: PolicySet, new: PolicySet
) -> list[str]:
    """One line for each consequence. Scans the folders of `new`, and waits for that."""
    before, after = await catalog.refreshed(old), await catalog.refreshed(new)
    elsewhere = ways_of_loading(old.models) != ways_of_loading(new.models)
    succession = Succession(after.cards.values())
    loaded = [
        _Loaded(r, worker.pid, succession.fate(r.card) if elsewhere else Fate(r.card))
        for r in residency.residents()
        if (worker := residency.worker_of(r)) is not None
    ]
    return [
        *_moves(loaded, old.models, new.models),
        *_idle_times(loaded, old.models, after),
        *_trimmed(residency, old, new),
        *_preloads(loaded, before, after),
    ]


@dataclass(frozen=True, slots=True)
class _Loaded:
    resident: Resident
    pid: int
    fate: Fate

    @property
    def name(self) -> str:
        return self.resident.card.name

    @property
    def original(self) -> str:
        return self.resident.card.original

    @property
    def running(self) -> str:
        leases = self.resident.leases
        return f"; {plural(leases, 'request')} running on it would finish first" if leases else ""


def _moves(loaded: list[_Loaded], old: Models, new: Models) -> Iterator[str]:
    for one in loaded:
        who, key = f"worker of {one.name} (pid {one.pid})", _key_that_moved(one.original, old, new)
        if one.fate.card is None and one.fate.successor is not None:
            yield f"{who} would be replaced: {key} changed{one.running}"
        elif one.fate.card is None:
            yield f"{who} would be let go: no name leads to its folder any more{one.running}"
        elif one.fate.successor is not None:
            yield f"{who} would be one of {one.fate.card.name}: {key} changed"


def _key_that_moved(name: str, old: Models, new: Models) -> str:
    was, own = settings_of(name, old), settings_of(name, new)
    for key in ("path", *HOW_TO_LOAD):
        if getattr(was or Model(), key) != getattr(own or Model(), key):
            return dotted(("models", "models", name, key))
    return "models.dirs"


def _idle_times(loaded: list[_Loaded], old: Models, after: Names) -> Iterator[str]:
    listed = {card.spec for name in after.models.preload if (card := after.find(name))}
    for one in loaded:
        if one.fate.card is None or one.resident.asked is not None or one.resident.spec in listed:
            continue
        was, now = _ttl(one.resident.card, old), _ttl(one.fate.card, after.models)
        if float(was) != float(now):
            yield f"{one.fate.card.name} would idle out {_when(now)} instead of {_when(was)}"


def _ttl(card: ModelCard, models: Models) -> KeepFor:
    return ttl_for(settings_for(card, models), models)


def _when(ttl: KeepFor) -> str:
    return "never" if str(ttl) == "never" else f"after {ttl}"


def _trimmed(residency: Residency, old: PolicySet, new: PolicySet) -> Iterator[str]:
    bounds = [("max_loaded", old.models.max_loaded, new.models.max_loaded)]
    bounds += [("max_loaded_bytes", old.models.max_loaded_bytes, new.models.max_loaded_bytes)]
    changed = [f"models.{key} {was} -> {now}" for key, was, now in bounds if was != now]
    victims = residency.excess(new) if changed else []
    if victims:
        models = plural(len(victims), "idle model")
        names = ", ".join(r.card.name for r in victims)
        yield f"{models} would be unloaded: {', '.join(changed)}: {names}"


def _preloads(loaded: list[_Loaded], before: Names, after: Names) -> Iterator[str]:
    present = {one.resident.spec for one in loaded}

    def in_memory(name: str, names: Names) -> bool:
        card = names.find(name)
        return card is not None and card.spec in present

    was, now = before.models.preload, after.models.preload
    added = [name for name in now if name not in was]
    if unknown := [name for name in added if after.find(name) is None]:
        yield f"preload would skip {', '.join(unknown)}: there is no such model"
    known = [name for name in added if name not in unknown]
    if missing := [name for name in known if not in_memory(name, after)]:
        yield f"preload would load {', '.join(missing)}"
    if kept := [name for name in known if name not in missing]:
        yield f"preload would keep {', '.join(kept)}"
    if freed := [name for name in was if name not in now and in_memory(name, before)]:
        yield f"preload would no longer keep {', '.join(freed)}"
