"""What needs a restart: flags and environment, read once, at the edge.

Flags win over the environment, the environment over mlxd.env. Values that are policies go on as
overrides, checked by the policies' own types; this room knows nothing of policies.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from mlxd.core import places
from mlxd.core.places import Found, Setting


class SettingsRefused(Exception):
    """Flags or environment that contradict themselves, in words."""


class Settings(BaseSettings):
    """Everything that flags, environment and mlxd.env say."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", defer_build=True)

    flags: Mapping[str, str]
    state: Found
    policies: Found | None = None
    variables: Mapping[str, Setting] = {}
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
            return cls(flags=given)  # type: ignore[call-arg]  # the rest comes from _Environment
        except ValidationError as refused:
            words = (problem["msg"].removeprefix("Value error, ") for problem in refused.errors())
            raise SettingsRefused("\n".join(words)) from None
        except places.BadEnvFile as refused:
            raise SettingsRefused(str(refused)) from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, _Environment(settings_cls)

    @model_validator(mode="after")
    def _one_port(self) -> Self:
        ours, old = self.variables.get("MLXD_PORT"), self.variables.get("MLX_API_PORT")
        if ours is not None and old is not None and ours.text != old.text:
            raise ValueError(
                f"{ours.source} is {ours.text} and {old.source} is {old.text}: "
                "both name the port to serve on; unset one, or make them equal"
            )
        return self

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


class _Environment(PydanticBaseSettingsSource):
    """The environment over mlxd.env, and the folders that follow from them."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        flags = self.current_state.get("flags", {})
        found = places.find(flags.get("policies"), flags.get("state"))
        return {
            "policies": found.policies,
            "state": found.state,
            "variables": found.settings,
            "notes": found.warnings,
        }
