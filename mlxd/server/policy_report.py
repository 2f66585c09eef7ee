"""The policies in force, as /health, /metrics and the admin socket tell of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mlxd.control.model_settings import HOW_TO_LOAD, setting_path
from mlxd.core.counts import some
from mlxd.policy import keys
from mlxd.policy.explain import hidden_line
from mlxd.policy.outcome import Outcome, error_json
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.strict_yaml import dotted
from mlxd.policy.units import written
from mlxd.server.answers import iso
from mlxd.server.parts import Parts

Json = dict[str, Any]

_MOST_CHANGES = 50
"""That an event keeps; the history has them all."""
_ALL_ERRORS = "mlxd policy check tells all"
_MOST_ERRORS = 10
"""That an event keeps, and /admin/policy has them all."""


def summary(parts: Parts, policies: PolicySet) -> Json:
    """For /health: what is in force, and everything about it that an operator should know."""
    last = parts.reloader.last
    return {
        "folder": str(parts.reloader.folder or ""),
        "source": policies.origin,
        "generation": policies.generation,
        "hash": policies.digest[:12],
        "last_reload": {
            "id": last.id,
            "result": last.result,
            "trigger": last.trigger,
            "at": iso(float(int(last.at))),
        },
        "errors": some(map(str, last.errors), f"and {{}} more: {_ALL_ERRORS}"),
        "pending_restart": list(parts.reloader.until_restart()),
        "shadowed": list(shadowed(policies)),
        "watching": parts.watcher.up,
    }


def warnings(parts: Parts, policies: PolicySet) -> Iterator[str]:
    """For people."""
    last = parts.reloader.last
    if policies.lkg:
        yield (
            f"the policy files are broken: generation {policies.generation}, the last good one,"
            " is in force"
        )
    refused = f"the policy files are refused, generation {policies.generation} stays"
    yield from some(
        (f"{refused}: {error}" for error in last.errors),
        f"{refused}: for {{}} more reasons, {_ALL_ERRORS}",
    )
    for key in parts.reloader.until_restart():
        yield f"{key} has changed and waits for a restart"
    yield from shadowed(policies, chosen=True)
    if parts.reloader.history_failure:
        yield parts.reloader.history_failure
    yield from policies.warnings()


def shadowed(policies: PolicySet, *, chosen: bool = False) -> Iterator[str]:
    """Which lines of files something stronger hides; `chosen`: those that are no default, and say
    something else.
    """
    for path, hidden in policies.shadowed.items():
        key = keys.find(path)
        same = {key.default if key is not None else None, written(policies.at(path))}
        for one in hidden:
            if one.source.place is not None and not (chosen and one.value in same):
                yield hidden_line(policies, path, one)


def report(parts: Parts, last: Outcome) -> None:
    """Tell metrics and events of an attempt."""
    metrics, policies = parts.metrics, parts.policies.current
    metrics.reloaded(result=last.result, trigger=last.trigger, seconds=last.seconds, at=last.at)
    metrics.policies(policies.digest, policies.origin)
    first = parts.reloader.last.errors[:1]
    line = str(first[0].place.line) if first and first[0].place is not None else ""
    file, key, message = (first[0].source, first[0].key, first[0].message) if first else ("",) * 3
    metrics.policy_error(file, line, key, message)
    told = last.as_json()
    told["changes"] = told["changes"][:_MOST_CHANGES]
    told["errors"] = told["errors"][:_MOST_ERRORS]
    greeted = last.trigger == "start"
    level = logging.DEBUG if greeted else logging.INFO if last.ok else logging.WARNING
    parts.events.record("reload", str(last), told, level=level)


def measure(parts: Parts) -> None:
    """The metrics that are asked for at each scrape."""
    store, reloader = parts.policies, parts.reloader
    for name, meaning, value in (
        ("mlxd_policy_generation", "The generation of policies in force.",
         lambda: store.current.generation),
        ("mlxd_policy_generations_alive",
         "Generations that a request still runs under, the one in force included.",
         lambda: store.generations_alive),
        ("mlxd_policy_pending_restart_fields", "Changed fields that wait for a restart.",
         lambda: len(reloader.until_restart())),
        ("mlxd_policy_watcher_up",
         "1 if the system tells of edits; 0: the policy folder is polled.",
         lambda: parts.watcher.up),
    ):  # fmt: skip
        parts.metrics.watch(name, meaning, value)


def effective(parts: Parts, policies: PolicySet, values: Iterable[Json]) -> Json:
    """Every value that is in force and where it was set: `values`, by key."""
    return {
        "generation": policies.generation,
        "source": policies.origin,
        "folder": str(parts.reloader.folder or ""),
        "hash": policies.digest,
        "errors": refusals(parts),
        "values": {one["key"]: one for one in values},
    }


def held_settings(parts: Parts, policies: PolicySet) -> dict[str, str]:
    """How models are to be loaded that stay as they were, and why."""
    return {
        dotted(setting_path(setting, card, policies.models)): card.held
        for card in parts.catalog.known()
        if card.held
        for setting in HOW_TO_LOAD
        if not setting.startswith("draft")  # who drafts follows edits all the same
    }


def refusals(parts: Parts) -> list[Mapping[str, Any]]:
    """Why the files, as they are now, are not in force."""
    return [error_json(error) for error in parts.reloader.last.errors]
