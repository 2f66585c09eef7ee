"""What a generation has in common with the one before it is the same in memory: every request keeps
the one that it was admitted under, and under many edits many are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from mlxd.policy.policy_set import PolicySet, Source
from mlxd.policy.schema import KINDS
from mlxd.policy.strict_yaml import Path
from mlxd.policy.units import written

_Files = dict[str | int, dict[Path, Source]]


def sharing(new: PolicySet, old: PolicySet) -> PolicySet:
    """`new`, with those files of `old` in it that say the same."""
    alike = {
        kind: here
        for kind in KINDS
        # values that are equal may be written otherwise, and are shown as they are written
        if written(here := getattr(old.policies, kind)) == written(getattr(new.policies, kind))
    }
    return replace(
        new,
        policies=new.policies.model_copy(update=alike),
        sources=Sources(new.sources, old.sources),
    )


class Sources(Mapping[Path, Source]):
    """By file, so that those of a file that stays are shared."""

    def __init__(self, said: Mapping[Path, Source], before: Mapping[Path, Source]) -> None:
        files: _Files = {}
        for path, source in said.items():
            files.setdefault(path[0], {})[path] = source
        known: _Files = before._files if isinstance(before, Sources) else {}
        self._files: _Files = {
            file: known[file] if known.get(file) == places else places
            for file, places in files.items()
        }

    def __getitem__(self, path: Path) -> Source:
        return self._files[path[0] if path else ""][path]

    def __iter__(self) -> Iterator[Path]:
        return (path for places in self._files.values() for path in places)

    def __len__(self) -> int:
        return sum(map(len, self._files.values()))
