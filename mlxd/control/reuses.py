"""What became of looks for beginnings of prompts that were read before: counted, by model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mlxd.core.events import Started

Result = Literal["whole", "part", "none"]


@dataclass(slots=True)
class Counts:
    """Of one model, since the daemon started."""

    whole: int = 0
    """Prompts of which everything was kept that could be."""
    part: int = 0
    """Prompts of which the nearest that is kept differs after a while."""
    none: int = 0
    """Prompts of which nothing was kept."""
    reused: int = 0
    """Tokens that were not computed again."""
    computed: int = 0
    """Tokens that were."""

    def add(self, start: Started) -> None:
        """`start` has a `reuse`."""
        match result_of(start):
            case "whole":
                self.whole += 1
            case "part":
                self.part += 1
            case "none":
                self.none += 1
        self.reused += start.cached_tokens
        self.computed += start.prompt_tokens - start.cached_tokens


class Reuses:
    """By the names of the models, of which there are no more than models."""

    def __init__(self) -> None:
        self._counts: dict[str, Counts] = {}

    def add(self, model: str, start: Started) -> None:
        self._counts.setdefault(model, Counts()).add(start)

    def of(self, model: str) -> Counts:
        return self._counts.get(model, Counts())

    def each(self) -> list[tuple[str, Counts]]:
        return list(self._counts.items())


def result_of(start: Started) -> Result:
    if not start.cached_tokens:
        return "none"
    return "part" if start.reuse is not None and start.reuse.missed >= 0 else "whole"
