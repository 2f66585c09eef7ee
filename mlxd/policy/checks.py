"""What one field alone cannot know: rules between fields and between files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from mlxd.core.caller import PRIORITIES
from mlxd.core.models import canonical
from mlxd.policy.origins import for_everybody
from mlxd.policy.schema import Models, Policies
from mlxd.policy.strict_yaml import Path, dotted


@dataclass(frozen=True, slots=True)
class Problem:
    """A rule that is broken, at the key that should change."""

    path: Path
    message: str


Written = Mapping[Path, object]
_MOST_EACH = 5
"""Tenants that are told one by one of a limit that is beyond everybody's."""


def problems_between(policies: Policies, written: Written) -> Iterator[Problem]:
    """All broken rules; `written` holds the paths that an operator set."""
    yield from _watermarks(policies, written)
    yield from _times(policies, written)
    yield from _limits(policies, written)
    yield from _restarts(policies, written)
    yield from _names(policies.models)
    yield from _listed_twice(policies)
    yield from _drafts(policies.models)
    yield from _priorities(policies, written)
    yield from _tenants(policies, written)
    yield from _web_pages(policies)


@dataclass(frozen=True, slots=True)
class _Bound:
    """A value that another may not pass, and what messages call it."""

    path: Path
    value: Any
    name: str = ""

    def __str__(self) -> str:
        return f"{self.name or self.path[-1]} ({self.value})"


def _rising(low: _Bound, high: _Bound, written: Written) -> Iterator[Problem]:
    """At most `high`; where it is more, the one that was written is the one to change."""
    if low.value <= high.value:
        return
    if low.path in written:
        yield Problem(low.path, f"expected at most {high}, got {low.value}")
    else:
        yield Problem(high.path, f"expected at least {low}, got {high.value}")


def _watermarks(policies: Policies, written: Written) -> Iterator[Problem]:
    marks = policies.memory.watermarks
    ordered = [
        ("warning", marks.warning),
        ("critical", marks.critical),
        ("emergency", marks.emergency),
    ]
    for (lower, low), (upper, high) in pairwise(ordered):
        if low.enter < high.enter:
            continue
        path: Path = ("memory", "watermarks", upper, "enter")
        message = f"expected a ratio above {lower}'s {low.enter}, got {high.enter}"
        if path not in written:  # then it is the lower one that was set wrong
            path = ("memory", "watermarks", lower, "enter")
            message = f"expected a ratio below {upper}'s {high.enter}, got {low.enter}"
        yield Problem(path, message)
    for name, mark in ordered:
        if mark.clear != "auto" and mark.clear >= mark.enter:
            message = f"expected auto, or a ratio below enter ({mark.enter}), got {mark.clear}"
            yield Problem(("memory", "watermarks", name, "clear"), message)


def _times(policies: Policies, written: Written) -> Iterator[Problem]:
    times, http = policies.timeouts, policies.server.http
    if times.first_byte > times.generation and ("timeouts", "first_byte") in written:
        yield Problem(
            ("timeouts", "first_byte"),
            f"expected at most timeouts.generation ({times.generation}), got {times.first_byte}",
        )
    yield from _rising(
        _Bound(("server", "http", "body_idle_timeout"), http.body_idle_timeout),
        _Bound(("server", "http", "body_total_timeout"), http.body_total_timeout),
        written,
    )


def _limits(policies: Policies, written: Written) -> Iterator[Problem]:
    adaptive = policies.limits.adaptive
    yield from _rising(
        _Bound(("limits", "adaptive", "min"), adaptive.min),
        _Bound(("limits", "adaptive", "max"), adaptive.max),
        written,
    )


def _restarts(policies: Policies, written: Written) -> Iterator[Problem]:
    worker = policies.supervision.worker
    here = ("supervision", "worker")
    pairs: list[tuple[_Bound, _Bound]] = [
        (
            _Bound((*here, "health", "timeout"), worker.health.timeout),
            _Bound((*here, "health", "interval"), worker.health.interval),
        ),
        (
            _Bound((*here, "backoff", "base"), worker.backoff.base),
            _Bound((*here, "backoff", "max"), worker.backoff.max),
        ),
        (
            _Bound((*here, "breaker", "open"), worker.breaker.open),
            _Bound((*here, "breaker", "quarantine"), worker.breaker.quarantine),
        ),
    ]
    for low, high in pairs:
        yield from _rising(low, high, written)


def _names(models: Models) -> Iterator[Problem]:
    """Every name that a client may send means one thing."""
    taken: dict[str, str] = {}
    for kind, what, names in (
        ("models", "the model", models.models), ("chains", "the chain", models.chains),
    ):  # fmt: skip
        for name in names:
            if (key := canonical(name)) in taken:
                yield Problem(("models", kind, name), f"{taken[key]} has this name")
            taken[key] = f"{what} {name}"
    for model, settings in models.models.items():
        own = {f"the model {model}", f"an alias of {model}"}
        spelt = {model.casefold()}
        for index, alias in enumerate(settings.aliases):
            other = taken.get(canonical(alias))
            if other is not None and (other not in own or alias.casefold() in spelt):
                path: Path = ("models", "models", model, "aliases", index)
                yield Problem(path, f"{other} has the name {alias} already")
            taken[canonical(alias)] = f"an alias of {model}"
            spelt.add(alias.casefold())


def _listed_twice(policies: Policies) -> Iterator[Problem]:
    for index, name in _repeated(limit.name for limit in policies.limits.rate_limit):
        path: Path = ("limits", "rate_limit", index, "name")
        yield Problem(path, f"another rate limit is called {name}")
    for index, name in _repeated(policies.models.preload):
        yield Problem(("models", "preload", index), f"{name} is listed already")
    windows = [float(budget.per) for budget in policies.supervision.worker.budget]
    for index, _ in _repeated(windows):
        window = policies.supervision.worker.budget[index].per
        path = ("supervision", "worker", "budget", index, "per")
        yield Problem(path, f"another budget counts within {window}")


def _repeated(items: Iterable[Any]) -> Iterator[tuple[int, Any]]:
    """Position and value of every item that an earlier one equals."""
    seen: set[Any] = set()
    for index, item in enumerate(items):
        if item in seen:
            yield index, item
        seen.add(item)


def _drafts(models: Models) -> Iterator[Problem]:
    for name, settings in models.models.items():
        if settings.draft is None:
            continue
        own = map(canonical, (name, *settings.aliases))
        if canonical(settings.draft) in own:
            path: Path = ("models", "models", name, "draft")
            yield Problem(path, "expected another, smaller model, got this one")


def _priorities(policies: Policies, written: Written) -> Iterator[Problem]:
    classes = policies.clients.priorities
    weights = [
        _Bound(("clients", "priorities", name, "weight"), value, f"{name}'s weight")
        for name, value in (
            ("low", classes.low.weight),
            ("medium", classes.medium.weight),
            ("high", classes.high.weight),
        )
    ]
    for low, high in pairwise(weights):
        yield from _rising(low, high, written)


def _tenants(policies: Policies, written: Written) -> Iterator[Problem]:
    """A tenant's own limit is within the limit for everyone, and its class within its own; names
    differ by more than case.
    """
    limits = policies.limits
    for key, value in (
        (("limits", "concurrency", "max_in_flight"), limits.concurrency.max_in_flight),
        (("limits", "tokens", "max_output"), limits.tokens.max_output),
    ):
        yield from _within(_Bound(key, value, ".".join(key)), policies, written)
    seen: dict[str, str] = {}
    for name, tenant in policies.clients.tenants.items():
        here = ("clients", "tenants", name)
        if other := seen.get(name.casefold()):
            yield Problem(here, f"another tenant is called {other}")
        seen[name.casefold()] = name
        if tenant.admin and name.casefold() == "anonymous":
            yield Problem((*here, "admin"), "expected false: those without a key are no tenant")
        own, most = tenant.priority, tenant.max_priority
        if PRIORITIES.index(own) < PRIORITIES.index(most) and "priority" in tenant.model_fields_set:
            yield Problem((*here, "priority"), f"expected at most max_priority ({most}), got {own}")


def _within(most: _Bound, policies: Policies, written: Written) -> Iterator[Problem]:
    """No tenant's own limit is above `most`. Where those of many are, it is the one to change, if
    somebody wrote it.
    """
    last = most.path[-1]
    own = [
        _Bound(("clients", "tenants", name, last), value)
        for name, tenant in policies.clients.tenants.items()
        if (value := getattr(tenant, str(last))) is not None and value > most.value
    ]
    if len(own) <= _MOST_EACH or most.path not in written:
        for low in own:
            yield from _rising(low, most, written)
        return
    highest = max(own, key=lambda low: int(low.value))
    yield Problem(
        most.path,
        f"expected at least {highest.value}, got {most.value}: {len(own)} tenants have more of"
        f" their own, {dotted(highest.path)} the most",
    )


def _web_pages(policies: Policies) -> Iterator[Problem]:
    cors = policies.clients.cors
    wide = next(filter(for_everybody, cors.allow_origins), None)
    if cors.allow_credentials and wide is not None:
        yield Problem(
            ("clients", "cors", "allow_credentials"),
            f"expected false while allow_origins has `{wide}`, got true: no browser sends "
            "credentials where every origin may ask",
        )
