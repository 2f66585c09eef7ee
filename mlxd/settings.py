"""What needs a restart: flags and environment, read once, at the edge.

Flags win over the environment, the environment over mlxd.env. Values that are policies go on as
overrides, checked by the policies' own types; this room knows nothing of policies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from mlxd.core import places
from mlxd.core.places import Found, Setting


class SettingsRefused(Exception):
    """Flags or environment that contradict themselves, in words."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that flags, environment and mlxd.env say."""

    flags: Mapping[str, str]
    state: Found
    policies: Found | None = None
    variables: Mapping[str, Setting] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def read(
        cls,
        *,
        policies: str | Path | None = None,
        state: str | Path | None = None,
        host: str | None = None,
        port: str | int | None = None,
    ) -> Self:
        """From the flags given, and this process's environment. Raises SettingsRefused."""
        flags = {"policies": policies, "state": state, "host": host, "port": port}
        given = {name: str(value) for name, value in flags.items() if value is not None}
        try:
            found = places.find(given.get("policies"), given.get("state"))
        except places.BadEnvFile as refused:
            raise SettingsRefused(str(refused)) from None
        _check_port(found.settings)
        return cls(given, found.state, found.policies, found.settings, found.warnings)

    def overrides(self) -> list[tuple[str, str, str]]:
        """(policy key, text, source) of each value that is a policy; the strongest come last."""
        found = [
            (key, setting.text, setting.source)
            for name, key in (
                ("MLXD_HOST", "server.listen.host"),
                ("MLX_API_PORT", "server.listen.port"),
                ("MLXD_PORT", "server.listen.port"),
                ("MLXD_MODELS", "models.dirs"),
            )
            if (setting := self.variables.get(name)) is not None
        ]
        return found + [
            (f"server.listen.{name}", self.flags[name], f"--{name}")
            for name in ("host", "port")
            if name in self.flags
        ]

    def warnings(self) -> list[str]:
        """What was said and has no effect."""
        found = list(self.notes)
        workers = self.variables.get("MLX_API_WORKERS")
        if workers is not None and workers.text != "1":
            found.append(
                f"{workers.source}: {workers.text} is refused and changes nothing: one daemon "
                "serves all requests, and each loaded model has a process of its own; "
                "set it to 1 or remove it"
            )
        return found


def _check_port(variables: Mapping[str, Setting]) -> None:
    """Raises SettingsRefused for two names of the port that disagree."""
    ours, old = variables.get("MLXD_PORT"), variables.get("MLX_API_PORT")
    if ours is not None and old is not None and ours.text != old.text:
        raise SettingsRefused(
            f"{ours.source} is {ours.text} and {old.source} is {old.text}: "
            "both name the port to serve on; unset one, or make them equal"
        )
