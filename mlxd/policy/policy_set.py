"""All policies in force at one time, and where each value came from; never changes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path as FilePath
from types import MappingProxyType
from typing import Any, Literal

from mlxd.core.errors import PolicyLine
from mlxd.policy.schema import (
    KINDS,
    Clients,
    Limits,
    Memory,
    Models,
    Policies,
    Policy,
    Server,
    Supervision,
    Timeouts,
)
from mlxd.policy.strict_yaml import Path, Place, dotted, parts
from mlxd.policy.units import Duration, Ratio, Size, shown, written

Network = IPv4Network | IPv6Network
_HEADER = "header:"


@dataclass(frozen=True, slots=True)
class Source:
    """Where a value was set: a place in a file, or the words of an override."""

    name: str
    """The file's name, or such as `environment MLX_API_PORT`."""
    place: Place | None = None

    def __str__(self) -> str:
        return f"{self.name}:{self.place.line}" if self.place is not None else self.name


@dataclass(frozen=True, slots=True)
class Shadowed:
    """A value that something stronger hides."""

    value: str
    """As it would be written in YAML."""
    source: Source


Origin = Literal["files", "lkg", "defaults"]
"""The policy folder, the last good ones kept in the state folder, or nothing but the defaults."""


@dataclass(frozen=True, eq=False)
class PolicySet:
    """One generation of policies. A request keeps the set it was admitted under.

    It never changes, so what is derived from it is worked out once, when somebody asks.
    """

    policies: Policies
    sources: Mapping[Path, Source] = field(default_factory=lambda: MappingProxyType({}))
    """Only what was set; everything else is built in."""
    folder: FilePath | None = None
    """None: there is none, built-in defaults are in force."""
    generation: int = 1
    shadowed: Mapping[Path, tuple[Shadowed, ...]] = field(
        default_factory=lambda: MappingProxyType({})
    )
    """What each override hides, the strongest first."""
    lkg: bool = False
    """The files are broken: these are the last good ones."""

    @property
    def origin(self) -> Origin:
        if self.lkg:
            return "lkg"
        return "files" if self.folder is not None else "defaults"

    @property
    def etag(self) -> str:
        """Names this generation and its values, as an HTTP entity tag does."""
        return f'"{self.generation}-{self.digest[:12]}"'

    @cached_property
    def digest(self) -> str:
        """64 hex digits over every effective value, however and in whatever order it is written."""
        flat = "\n".join(sorted(f"{dotted(path)}={_plain(value)}" for path, value in self.leaves()))
        return hashlib.sha256(flat.encode("utf-8", "surrogatepass")).hexdigest()

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
    def supervision(self) -> Supervision:
        return self.policies.supervision

    @property
    def clients(self) -> Clients:
        return self.policies.clients

    @cached_property
    def tenants(self) -> Mapping[str, str]:
        """The tenants of `clients.tenants` as they are written, by their names in lower case."""
        return {name.casefold(): name for name in self.clients.tenants}

    @cached_property
    def administrators(self) -> frozenset[str]:
        """The tenants whose keys may use the admin side over HTTP, as they are written."""
        tenants = self.clients.tenants
        return frozenset(name for name, tenant in tenants.items() if tenant.admin)

    @cached_property
    def keys_required(self) -> bool:
        """Whether a client needs an API key."""
        required = self.clients.auth.required
        return not self.server.listen.loopback if required == "auto" else required

    @cached_property
    def proxies(self) -> tuple[Network, ...]:
        """Whose X-Forwarded-For is believed."""
        return tuple(ip_network(text, strict=False) for text in self.clients.trusted_proxies)

    @cached_property
    def counted_headers(self) -> frozenset[str]:
        """Those that a rate rule counts by, in lower case."""
        keys = (rule.key for rule in self.limits.rate_limit)
        return frozenset(key.partition(":")[2].lower() for key in keys if key.startswith(_HEADER))

    def work_out(self) -> None:
        """Derive now what would else be derived when somebody first asks."""
        assert self.digest
        self.warnings()

    def leaves(self) -> Iterator[tuple[Path, Any]]:
        """Every single value that is in force, defaults included."""
        return _leaves(self.policies, ())

    def value(self, key: str) -> Any:
        """The value in force; KeyError if there is no such key."""
        return self.at(parts(key))

    def at(self, path: Path) -> Any:
        """As `value`, by path."""
        if not path:
            raise KeyError("")
        value: Any = self.policies
        for part in path:
            value = _entry(value, part)
        return value

    def line(self, key: str) -> PolicyLine:
        """The line that an operator changes to get another answer."""
        line = self._lines.get(key)
        if line is None:
            path = parts(key)
            line = PolicyLine(key, shown(self.at(path)), self.place(path))
            self._lines[key] = line
        return line

    def line_unseen(self, key: str) -> PolicyLine:
        """As `line`, of a value that is not for whoever is refused by it."""
        return replace(self.line(key), value="...")

    @cached_property
    def _lines(self) -> dict[str, PolicyLine]:
        """Those that somebody has asked for: a refusal names one, and may come very often."""
        return {}

    def warnings(self) -> list[str]:
        """What an operator should know as long as these policies are in force."""
        return list(self._warnings)

    @cached_property
    def _warnings(self) -> list[str]:
        if self.server.listen.loopback or self.keys_required:
            return []
        host = self.line("server.listen.host")
        return [
            f"server.listen.host {host.value} ({host.place}) can be reached by other machines "
            "and clients.auth.required is false: whoever reaches it can use every model"
        ]

    def place(self, path: Path) -> str:
        """Where a value was set: `policies/limits.yaml:5`, an override's source, or by default."""
        folder = self.folder.name if self.folder is not None else "policies"
        source = self.sources.get(path)
        if source is None:
            return f"built-in default; set it in {folder}/{path[0]}.yaml"
        return str(source) if source.place is None else f"{folder}/{source}"


def _entries(value: Any) -> Iterable[tuple[str | int, Any]]:
    """What a group holds, by the names that a file writes."""
    if isinstance(value, Policy):
        named = value.attributes().items()
        return [(name, getattr(value, attribute)) for name, attribute in named]
    return value.items() if isinstance(value, Mapping) else enumerate(value)


def _entry(value: Any, part: str | int) -> Any:
    """What a group holds under one name. Raises KeyError."""
    try:
        if isinstance(value, Policy):
            return getattr(value, value.attributes()[str(part)])
        if isinstance(value, Mapping):
            return value[part]
        if isinstance(value, tuple) and isinstance(part, int):
            return value[part]
    except (LookupError, TypeError):
        pass
    raise KeyError(part)


def _plain(value: Any) -> str:
    """The same text for the same value: 60s and 1m are one."""
    if isinstance(value, (Duration, Ratio)):
        return repr(float(value))
    return repr(int(value)) if isinstance(value, Size) else written(value)


def _leaves(value: Any, here: Path) -> Iterator[tuple[Path, Any]]:
    """A list is one value, unless its items have fields of their own; so is an empty mapping."""
    single = isinstance(value, tuple) and not any(isinstance(item, Policy) for item in value)
    if single or not isinstance(value, (Policy, Mapping, tuple)) or value == {}:
        yield here, value
        return
    for part, inner in _entries(value):
        yield from _leaves(inner, (*here, part))


def of(kind: str) -> str:
    """The file that holds a kind of policies."""
    return f"{kind}.yaml"


FILES = tuple(of(kind) for kind in KINDS)
