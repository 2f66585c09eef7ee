"""What one field alone cannot know: rules between fields and between files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from mlxd.policy.schema import Models, Policies
from mlxd.policy.strict_yaml import Path


@dataclass(frozen=True, slots=True)
class Problem:
    """A rule that is broken, at the key that should change."""

    path: Path
    message: str


def problems_between(policies: Policies, written: Mapping[Path, object]) -> Iterator[Problem]:
    """All broken rules; `written` holds the paths that an operator set."""
    yield from _watermarks(policies, written)
    yield from _times(policies, written)
    yield from _names(policies.models)
    yield from _rate_limits(policies)
    yield from _open_to_others(policies, written)


def _watermarks(policies: Policies, written: Mapping[Path, object]) -> Iterator[Problem]:
    marks = policies.memory.watermarks
    ordered = [
        ("warning", marks.warning.enter),
        ("critical", marks.critical.enter),
        ("emergency", marks.emergency.enter),
    ]
    for (lower, low), (upper, high) in pairwise(ordered):
        if low < high:
            continue
        path: Path = ("memory", "watermarks", upper, "enter")
        message = f"expected a ratio above {lower}'s {low}, got {high}"
        if path not in written:  # then it is the lower one that was set wrong
            path = ("memory", "watermarks", lower, "enter")
            message = f"expected a ratio below {upper}'s {high}, got {low}"
        yield Problem(path, message)


def _times(policies: Policies, written: Mapping[Path, object]) -> Iterator[Problem]:
    times, http = policies.timeouts, policies.server.http
    if times.first_byte > times.generation and ("timeouts", "first_byte") in written:
        yield Problem(
            ("timeouts", "first_byte"),
            f"expected at most timeouts.generation ({times.generation}), got {times.first_byte}",
        )
    if http.body_idle_timeout > http.body_total_timeout:
        name, most = "body_idle_timeout", f"at most body_total_timeout ({http.body_total_timeout})"
        found = http.body_idle_timeout
        if ("server", "http", name) not in written:
            name, most = "body_total_timeout", f"at least body_idle_timeout ({found})"
            found = http.body_total_timeout
        yield Problem(("server", "http", name), f"expected {most}, got {found}")


def _names(models: Models) -> Iterator[Problem]:
    """Every name that a client may send means one thing."""
    taken = {name.casefold(): f"the model {name}" for name in models.models}
    for name in models.chains:
        if name.casefold() in taken:
            yield Problem(("models", "chains", name), f"{taken[name.casefold()]} has this name")
        taken[name.casefold()] = f"the chain {name}"
    for model, settings in models.models.items():
        for index, alias in enumerate(settings.aliases):
            if alias.casefold() in taken:
                path: Path = ("models", "models", model, "aliases", index)
                yield Problem(path, f"{taken[alias.casefold()]} has the name {alias} already")
            taken[alias.casefold()] = f"an alias of {model}"


def _rate_limits(policies: Policies) -> Iterator[Problem]:
    names: set[str] = set()
    for index, limit in enumerate(policies.limits.rate_limit):
        if limit.name in names:
            path: Path = ("limits", "rate_limit", index, "name")
            yield Problem(path, f"another rate limit is called {limit.name}")
        names.add(limit.name)


def _open_to_others(policies: Policies, written: Mapping[Path, object]) -> Iterator[Problem]:
    listen, required = policies.server.listen, policies.clients.auth.required
    key = ("clients", "auth", "required")
    if listen.loopback and required is True:
        yield Problem(
            key,
            "API keys are not checked yet, so true would keep nobody out: write auto, or remove "
            "the line, to serve whoever is on this machine",
        )
    if listen.loopback or (required is False and key in written):
        return
    yield Problem(
        ("server", "listen", "host"),
        f"{listen.host} can be reached by other machines, and API keys are not checked yet: "
        "to serve everyone there, write in clients.yaml `auth: {required: false}`",
    )
