"""Which MLX build a name as Ollama's users type it stands for: the table that ships with mlxd."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mlxd.core.models import canonical
from mlxd.policy import strict_yaml

_TABLE = Path(__file__).with_name("builds.yaml")
_ORGANISATION = "mlx-community"
_LONGEST_NAME = 200
"""Of one that is looked for among those of the table."""
_USUAL = ("4bit", "8bit")
_SAYS_NOTHING = re.compile(r"-(?:instruct|chat|it)(?=-|$)")
_OLLAMA_BITS = re.compile(r"q([2-8])(?:_[a-z0-9_]+)?")


@dataclass(frozen=True, slots=True)
class Family:
    """The builds of one family of models."""

    latest: str
    sizes: Mapping[str, str]
    builds: tuple[str, ...]
    organisation: str

    def repository(self, tag: str) -> str | None:
        """ORGANISATION/NAME of a tag; None where there is no such build."""
        plain = _SAYS_NOTHING.sub("", tag)
        size, _, wanted = plain.partition("-")
        base = self.sizes.get(size or self.latest)
        build = self._build(wanted)
        return f"{self.organisation}/{base}-{build}" if base and build else None

    def _build(self, wanted: str) -> str | None:
        if not wanted:
            return self.builds[0]
        if match := _OLLAMA_BITS.fullmatch(wanted):
            wanted = f"{match[1]}bit"
        return next((one for one in self.builds if one == wanted), None)


class Builds:
    """Families by name."""

    def __init__(self, families: Mapping[str, Family]) -> None:
        self.families = families

    def repository(self, name: str) -> str | None:
        """What to pull for `name`; None where the table does not know it."""
        family, _, tag = canonical(name).partition(":")
        found = self.families.get(family)
        return found.repository(tag or found.latest) if found is not None else None

    def near(self, name: str) -> list[str]:
        """Names of the table that look like `name`: sizes of its family, else other families."""
        if len(name) > _LONGEST_NAME:
            return []
        wanted = canonical(name)
        family = wanted.partition(":")[0]
        if family in self.families:
            return [f"{family}:{size}" for size in self.families[family].sizes]
        return difflib.get_close_matches(wanted, self._names(), n=3, cutoff=0.6)

    def _names(self) -> Sequence[str]:
        sized = [f"{name}:{size}" for name, one in self.families.items() for size in one.sizes]
        return [*self.families, *sized]


@cache
def shipped() -> Builds:
    """The table of this package; read when first asked for."""
    data = strict_yaml.parse(_TABLE.read_bytes()).data or {}
    return Builds({name: _family(entry) for name, entry in data.items()})


def _family(entry: Mapping[str, object]) -> Family:
    sizes = entry["sizes"]
    builds = entry.get("builds", _USUAL)
    if not isinstance(sizes, Mapping) or not isinstance(builds, Sequence):
        raise TypeError("a family has sizes, and a list of builds")
    return Family(
        latest=str(entry["latest"]),
        sizes={str(size): str(base) for size, base in sizes.items()},
        builds=tuple(str(build) for build in builds),
        organisation=str(entry.get("organisation", _ORGANISATION)),
    )
