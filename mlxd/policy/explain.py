"""Why a value is what it is: where it was set, what it hides, how a change takes effect."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

from mlxd.policy import keys
from mlxd.policy.policy_set import PolicySet, Shadowed, Source
from mlxd.policy.strict_yaml import Path, dotted, parts
from mlxd.policy.units import shown

Json = dict[str, Any]
_NONE: Mapping[str, str] = MappingProxyType({})


class NoSuchKey(Exception):
    """There is no such policy, or it may be several; the message names the nearest ones."""


def explain(
    policies: PolicySet,
    key: str,
    until_restart: Mapping[str, str] = _NONE,
    held: Mapping[str, str] = _NONE,
) -> list[Json]:
    """Every value at or under `key`, explained (`explained`). Raises NoSuchKey.

    A key is written with its file (`limits.concurrency.max_in_flight`), or by its last part where
    only one has it, or only one that is not of a single tenant, model or rule.
    """
    wanted = parts(key)
    found = list(_matching(policies, wanted)) if wanted or not key else []
    if not found:
        raise NoSuchKey(_no_such(policies, key))
    return [explained(policies, path, until_restart, held) for path in found]


def explained(
    policies: PolicySet,
    path: Path,
    until_restart: Mapping[str, str] = _NONE,
    held: Mapping[str, str] = _NONE,
) -> Json:
    """One value that is in force, or will be: `until_restart` has what is meanwhile, and `held` why
    a model is served as it was before.
    """
    key = keys.find(path)
    source = policies.sources.get(path)
    name = dotted(path)
    return {
        "key": name,
        "value": shown(policies.at(path)),
        "until_restart": until_restart.get(name),
        "held": held.get(name),
        "source": policies.place(path),
        **_position(source),
        "shadowed": [
            {"value": one.value, "source": str(one.source), **_position(one.source)}
            for one in policies.shadowed.get(path, ())
        ],
        **_said_of(key.path if key is not None else None),
    }


@cache
def _said_of(path: tuple[str, ...] | None) -> Json:
    """What the schema says of a key, which thousands of values may have; None: it has none."""
    if path is None:
        return {"default": None, "takes": "", "unit": "", "reload": "live", "meaning": ""}
    key = keys.table()[path]
    return {
        "default": key.default,
        "takes": key.expected,
        "unit": key.extra("unit") or "",
        "reload": key.extra("reload") or "live",
        "meaning": key.description,
    }


def hidden_line(policies: PolicySet, path: Path, hidden: Shadowed) -> str:
    """What a value says in vain."""
    winner = policies.sources[path]
    return f"{dotted(path)}: {hidden.value} ({hidden.source}) is shadowed by {winner}"


def newly_hidden(old: PolicySet, new: PolicySet) -> list[str]:
    """What `new` says in vain, and `old` does not."""
    before = set(_hidden(old))
    return [line for line in _hidden(new) if line not in before]


def _hidden(policies: PolicySet) -> Iterator[str]:
    for path, hidden in policies.shadowed.items():
        for one in hidden:
            yield hidden_line(policies, path, one)


def _position(source: Source | None) -> Json:
    place = source.place if source is not None else None
    return {
        "file": source.name if source is not None and place is not None else None,
        "line": place.line if place is not None else None,
        "column": place.column if place is not None else None,
    }


def _matching(policies: PolicySet, wanted: Path) -> Iterator[Path]:
    """The value itself, or all values under a group; else the one that this ending means."""
    leaves = [path for path, _ in policies.leaves()]
    under = [path for path in leaves if path[: len(wanted)] == wanted]
    if not wanted or under:
        yield from under
        return
    ending = _ending(leaves, wanted)
    own = [path for path in ending if not _is_of_one(path)]
    if 1 in (len(own), len(ending)):
        yield from own or ending


def _ending(leaves: Iterable[Path], wanted: Path) -> list[Path]:
    return [path for path in leaves if path[-len(wanted) :] == wanted]


def _is_of_one(path: Path) -> bool:
    """Whether it is a single tenant's, model's or rule's, as not each of them has."""
    key = keys.find(path)
    return key is None or keys.ENTRY in key.path or keys.ITEM in key.path


def _no_such(policies: PolicySet, key: str) -> str:
    import difflib  # only once something is wrong

    leaves = [path for path, _ in policies.leaves()]
    if several := [dotted(path) for path in _ending(leaves, parts(key))]:
        return f"{key} may be {', '.join(several[:-1])} or {several[-1]}: name one of them"
    names = [dotted(path) for path in leaves]
    last = str(parts(key)[-1]) if parts(key) else ""
    near = [name for name in names if name.endswith(f".{last}")]
    near = near or difflib.get_close_matches(key, names, 3, 0.5)
    return f"there is no policy {key}" + (f"; did you mean {' or '.join(near)}?" if near else "")
