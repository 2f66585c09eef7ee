"""What differs between two sets of policies: values, not comments, order or layout."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from mlxd.policy import keys
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.schema import Reload
from mlxd.policy.strict_yaml import Path, dotted
from mlxd.policy.units import shown


@dataclass(frozen=True, slots=True)
class Change:
    """One value that differs; values are as YAML writes them."""

    key: str
    old: str | None
    """None: the key was not there (an entry of a list or mapping)."""
    new: str | None
    reload: Reload
    place: str
    """Where the new value was set, or what it falls back to."""

    def __str__(self) -> str:
        return f"{self.key}: {self.old or '-'} -> {self.new or '-'} ({self.reload}, {self.place})"

    def as_json(self) -> dict[str, str | None]:
        return asdict(self)


def changes(old: PolicySet, new: PolicySet) -> tuple[Change, ...]:
    """In the schema's order. `1m` for `60s` is no change: values are compared, not their text.

    Of an entry that comes or goes only what was written there counts, if anything was.
    """
    before, after = dict(old.leaves()), dict(new.leaves())
    unsaid = _unsaid(after, new, before) | _unsaid(before, old, after)
    return tuple(
        Change(
            dotted(path),
            shown(before[path]) if path in before else None,
            shown(after[path]) if path in after else None,
            reload_class(path),
            new.place(path),
        )
        for path in [*after, *(path for path in before if path not in after)]
        if path not in unsaid
        and (path not in before or path not in after or before[path] != after[path])
    )


def _unsaid(here: Iterable[Path], policies: PolicySet, there: Iterable[Path]) -> set[Path]:
    """The defaults of entries that are only here, and that hold something that was written; and
    groups that are empty here and hold entries there.
    """
    known = {path[:end] for path in there for end in range(len(path) + 1)}
    alone = {
        path: next(path[:end] for end in range(len(path) + 1) if path[:end] not in known)
        for path in here
        if path not in known
    }
    said = {entry for path, entry in alone.items() if path in policies.sources}
    silent = alone.keys() - policies.sources.keys()
    empty = known.intersection(here).difference(there)
    return {path for path in silent if alone[path] in said} | empty


def reload_class(path: Path) -> Reload:
    """How a change there takes effect: by the key, or the nearest one around it that says so."""
    for end in range(len(path), 0, -1):
        key = keys.find(path[:end])
        if key is not None and (reload := key.extra("reload")):
            found: Reload = reload
            return found
    return "live"


def touches(found: tuple[Change, ...], *prefixes: str) -> bool:
    """Whether a change is under one of these keys."""
    return any(
        change.key == prefix or change.key.startswith((f"{prefix}.", f"{prefix}["))
        for change in found
        for prefix in prefixes
    )
