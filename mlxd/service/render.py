"""Targets into files: `mlxd service render`, and what is committed under packaging/."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from mlxd.service import homebrew, launchd, systemd
from mlxd.service.facts import Facts
from mlxd.service.layout import BREW_MAC, SYSTEM_LINUX, SYSTEM_MAC, USER_LINUX, Layout

Files: TypeAlias = Mapping[str, str]
"""Contents by name, relative to the target's folder: `mlxd.service`, `mlxd.service.d/254.conf`."""
Renderer: TypeAlias = Callable[[Facts, Layout], Files]
Scope: TypeAlias = Literal["user", "system"]


@dataclass(frozen=True, slots=True)
class Target:
    """One set of files that some program runs mlxd by."""

    name: str
    manager: str
    scope: Scope
    folder: str
    """Below packaging/."""
    render: Renderer
    layout: Layout
    """Of the files that are committed."""


TARGETS = (
    Target("launchd", "launchd", "user", "launchd", launchd.agent, BREW_MAC),
    Target("launchd-daemon", "launchd", "system", "launchd/daemon", launchd.daemon, SYSTEM_MAC),
    Target("systemd", "systemd", "system", "systemd", systemd.system, SYSTEM_LINUX),
    Target("systemd-user", "systemd", "user", "systemd/user", systemd.user, USER_LINUX),
    Target("homebrew", "homebrew", "user", "homebrew", homebrew.formula, homebrew.BREW),
)


class NoSuchTarget(ValueError):
    """A name or a scope that is not there; the message lists what is."""


def target(name: str, scope: Scope | None = None) -> Target:
    """By its name, or by its manager's in another scope: `launchd`, `system` is `launchd-daemon`.

    Raises NoSuchTarget.
    """
    named = next((one for one in TARGETS if one.name == name), None)
    if named is None:
        raise NoSuchTarget(f"there is no target {name}; known are {', '.join(names())}")
    if scope is None or named.scope == scope:
        return named
    for one in TARGETS:
        if (one.manager, one.scope) == (name, scope):
            return one
    raise NoSuchTarget(f"{name} is a {named.scope}'s service, and has no form for a {scope}")


def names() -> tuple[str, ...]:
    return tuple(one.name for one in TARGETS)


def joined(files: Files) -> str:
    """For one stream: of several, each behind a line with its name, a comment in all of them."""
    if len(files) == 1:
        return next(iter(files.values()))
    return "\n".join(f"# ---- {name}\n{content}" for name, content in files.items())
