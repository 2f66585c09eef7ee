"""All policies in force at one time, and where each value came from; never changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from types import MappingProxyType
from typing import Any

from mlxd.core.errors import PolicyLine
from mlxd.policy import keys
from mlxd.policy.schema import (
    KINDS,
    Clients,
    Limits,
    Memory,
    Models,
    Policies,
    Server,
    Timeouts,
)
from mlxd.policy.strict_yaml import Path, Place, dotted, parts
from mlxd.policy.units import written


@dataclass(frozen=True, slots=True)
class Source:
    """Where a value was set: a place in a file, or the words of an override."""

    name: str
    """The file's name, or such as `environment MLX_API_PORT`."""
    place: Place | None = None

    def __str__(self) -> str:
        return f"{self.name}:{self.place.line}" if self.place is not None else self.name


@dataclass(frozen=True, slots=True)
class PolicySet:
    """One generation of policies. A request keeps the set it was admitted under."""

    policies: Policies
    sources: Mapping[Path, Source] = field(default_factory=lambda: MappingProxyType({}))
    """Only what was set; everything else is built in."""
    folder: FilePath | None = None
    """None: there is none, built-in defaults are in force."""
    generation: int = 1

    @property
    def server(self) -> Server:
        return self.policies.server

    @property
    def limits(self) -> Limits:
        return self.policies.limits

    @property
    def timeouts(self) -> Timeouts:
        return self.policies.timeouts

    @property
    def models(self) -> Models:
        return self.policies.models

    @property
    def memory(self) -> Memory:
        return self.policies.memory

    @property
    def clients(self) -> Clients:
        return self.policies.clients

    def value(self, key: str) -> Any:
        """The value in force; KeyError if there is no such key."""
        return self._value(parts(key), key)

    def line(self, key: str) -> PolicyLine:
        """The line that an operator changes to get another answer."""
        path = parts(key)
        return PolicyLine(key, written(self._value(path, key)), self._place(path))

    def not_enforced(self) -> list[str]:
        """Keys whose value nothing acts on yet, where an operator or a client may think it does."""
        return [dotted(path) for path in self._unenforced() if self._expected_to_work(path)]

    def warnings(self) -> list[str]:
        """What an operator should know as long as these policies are in force."""
        found = [
            f"{key} {written(self.value(key))} is {_so_far(key)}" for key in self.not_enforced()
        ]
        if not self.server.listen.loopback:
            host = self.line("server.listen.host")
            found.append(
                f"server.listen.host {host.value} ({host.place}) can be reached by other machines "
                "and clients.auth.required is false: whoever reaches it can use every model"
            )
        return found

    def _value(self, path: Path, key: str) -> Any:
        value: Any = self.policies
        if not path:
            raise KeyError(key)
        for part in path:
            try:
                inside = isinstance(part, int) or isinstance(value, Mapping)
                value = value[part] if inside else getattr(value, str(part))
            except (LookupError, AttributeError, TypeError):
                raise KeyError(key) from None
        return value

    def _place(self, path: Path) -> str:
        folder = self.folder.name if self.folder is not None else "policies"
        source = self.sources.get(path)
        if source is None:
            return f"built-in default; set it in {folder}/{path[0]}.yaml"
        return str(source) if source.place is None else f"{folder}/{source}"

    def _unenforced(self) -> Iterator[tuple[str, ...]]:
        return (key.path for key in keys.table().values() if not key.enforced)

    def _expected_to_work(self, path: tuple[str, ...]) -> bool:
        """Whether clients see the value, or an operator chose it: False is off, and off is off."""
        key = keys.table()[path]
        value = self._value(path, key.name)
        chosen = path in self.sources and written(value) != key.default and value is not False
        return chosen or key.extra("shown") is True


def _so_far(key: str) -> str:
    named = keys.find(parts(key))
    return (named.extra("so_far") if named else "") or "not enforced yet"


def of(kind: str) -> str:
    """The file that holds a kind of policies."""
    return f"{kind}.yaml"


FILES = tuple(of(kind) for kind in KINDS)
