"""What a test puts over the folder's own policies, judged as the daemon would judge the files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlxd.policy import keys, strict_yaml
from mlxd.policy.files import PolicyFiles
from mlxd.policy.load import SCHEMA, judge
from mlxd.policy.policy_set import PolicySet, of
from mlxd.policy.schema import KINDS
from mlxd.policy.strict_yaml import Path
from mlxd.policy.units import written
from mlxd.simulate.reading import Reading

Changes = Mapping[str, Mapping[str, Any]]
"""By kind of policies, such as `limits`, what would be written in its file."""


@dataclass(frozen=True, slots=True)
class Layers:
    """Policy files with changes put over them."""

    files: PolicyFiles

    def over(self, changes: Changes) -> Layers:
        """With more changes on top: mappings are merged, everything else is replaced."""
        contents = dict(self.files.contents)
        for kind, change in changes.items():
            present = strict_yaml.parse(contents.get(of(kind), b"")).data or {}
            contents[of(kind)] = _file({"schema": SCHEMA} | _merged(present, change))
        return Layers(self.files.with_contents(contents))

    def judged(self) -> PolicySet:
        """Raises PolicyErrors; their places are no places of the test file, their keys are."""
        return judge(self.files)


def read_changes(reading: Reading, value: Any, path: Path) -> Changes:
    """As they stand in a test file. Only their outline is checked here: the rest is `judged`."""
    changes = reading.mapping(value, path, "a mapping such as {limits: {...}}")
    reading.known(changes, KINDS, path, "policy file")
    words = {kind: f"a mapping of what {of(kind)} holds" for kind in KINDS}
    return {
        kind: reading.mapping(change, (*path, kind), words[kind])
        for kind, change in changes.items()
        if kind in KINDS
    }


def is_key(name: str) -> bool:
    """Whether a policy of this dotted name may exist."""
    return keys.find(strict_yaml.parts(name)) is not None


def _merged(present: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(present)
    for key, value in change.items():
        was = present.get(key)
        inside = isinstance(was, dict) and isinstance(value, dict)
        merged[key] = _merged(was or {}, value) if inside else value
    return merged


def _file(data: Mapping[str, Any]) -> bytes:
    return "".join(f"{written(key)}: {written(value)}\n" for key, value in data.items()).encode()
