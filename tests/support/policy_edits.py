"""Edits of policies: another value for every key, and files made of single values."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml

from mlxd.policy import keys
from mlxd.policy.keys import ENTRY, ITEM, Key
from mlxd.policy.strict_yaml import Path
from mlxd.policy.units import Duration, Ratio, Size
from tests.support.daemon import Daemon

IN_USE = ("live", "live-drain", "rebind")
"""The reload classes of what takes effect while the daemon runs."""
SINGLE = {"limits.rate_limit[].key", "memory.eviction.strategy"}
"""Keys that take one value only, so far."""
_MANY = 4096
_CHOSEN = {
    "server.listen.host": "localhost",
    "limits.concurrency.max_in_flight": 1,
    "clients.tenants.<name>.max_in_flight": 1,
    "clients.tenants.<name>.priority": "low",
    "clients.auth.required": False,
    "supervision.worker.spares": 1,
}
"""Where the rule for the type would give a value that the schema, or another key, forbids."""


def another(key: Key) -> Any:
    """A valid value that is not the default, as YAML has it. It ends no stream: times get longer.

    Raises LookupError if there is none.
    """
    if key.name in SINGLE:
        raise LookupError(key.name)
    if key.name in _CHOSEN:
        return _CHOSEN[key.name]
    assert key.owner is not None, f"{key.name} is no field"
    default = getattr(key.owner(), key.owner.attributes()[key.path[-1]])
    return _another(key.annotation, default, key)


def _another(kind: Any, default: Any, key: Key) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated and arguments[0] is not str:
        return _another(arguments[0], default, key)
    if origin is Literal:
        return next(value for value in arguments if value != default)
    if origin in (Union, UnionType):
        return _another(_most_particular(arguments), default, key)
    if kind is bool:
        return default is not True
    if kind is int:
        return default + 1 if isinstance(default, int) else _MANY
    if isinstance(kind, type) and issubclass(kind, (Duration, Size, Ratio)):
        return _measured(kind, default)
    return yaml.safe_load(key.example)


def _most_particular(kinds: Sequence[Any]) -> Any:
    """Of `auto` or a size, the size; of nothing or a name, the name."""
    return next(
        (one for one in kinds if get_origin(one) is not Literal and one is not type(None)),
        kinds[0],
    )


def _measured(kind: type[Duration] | type[Size] | type[Ratio], default: Any) -> str:
    """Twice as long, twice as much, one point less."""
    number = default if isinstance(default, (int, float)) else 0
    if issubclass(kind, Duration):
        return f"{2 * number:g}s" if 0 < number < 1e7 else "1h"
    if issubclass(kind, Size):
        return f"{2 * number}B" if number else "1GiB"
    if not number:
        return "1%" if isinstance(default, kind) else "50%"
    return f"{100 * number - 1:g}%"


def changeable(reloads: Iterable[str] = IN_USE) -> list[Key]:
    """Every single field of these reload classes; what holds other fields is none."""
    fields = [key for key in keys.table().values() if key.extra("reload")]
    groups = {key.path[:end] for key in fields for end in range(len(key.path))}
    return [key for key in fields if key.extra("reload") in reloads and key.path not in groups]


class Edited:
    """Policy files as values, written whole."""

    def __init__(self, files: Mapping[str, Mapping[str, Any]]) -> None:
        self.files: dict[str, dict[str, Any]] = {
            kind: deepcopy(dict(values)) for kind, values in files.items()
        }

    def put(self, path: Path, value: Any) -> str:
        """Set one value; returns the kind whose file changes by it."""
        kind = str(path[0])
        place: Any = self.files.setdefault(kind, {})
        for part in path[1:-1]:
            place = place[part] if isinstance(part, int) else place.setdefault(part, {})
        place[path[-1]] = value
        return kind

    def text(self, kind: str) -> str:
        """Below its `schema:` line; JSON is YAML."""
        return "".join(
            f"{json.dumps(name)}: {json.dumps(value)}\n" for name, value in self.files[kind].items()
        )

    def texts(self) -> dict[str, str]:
        return {kind: self.text(kind) for kind in self.files}

    def save(self, daemon: Daemon, kinds: Iterable[str]) -> None:
        for kind in sorted(set(kinds)):
            daemon.edit(kind, self.text(kind))


def actual(key: Key, entries: Mapping[str, str]) -> Path:
    """Where a key is set, given which entry stands for `<name>` under each mapping."""
    found: list[str | int] = []
    for part in key.path:
        found.append(entries[".".join(map(str, found))] if part == ENTRY else part)
    return tuple(0 if part == ITEM else part for part in found)
