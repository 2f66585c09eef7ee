"""What is kept of prompts, without limits, indexes or bytes: a list that is searched."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from mlxd.worker.engine import Kind, Prompt


@dataclass
class Beginning:
    length: int
    caches: list[Any]


@dataclass
class Kept:
    prompt: Prompt
    length: int
    caches: list[Any]
    kind: Kind


class List:
    """As `worker.engine.Prefixes`. `forgets`: it keeps nothing at all."""

    nbytes = 0
    keeps = True

    def __init__(self, *, trimmable: bool, forgets: bool = False) -> None:
        self.trimmable = trimmable
        self.forgets = forgets
        self.kept: list[Kept] = []
        self.found: list[int] = []

    @property
    def kinds(self) -> list[tuple[str, int]]:
        return [(one.kind, one.length) for one in self.kept]

    @property
    def keeping(self) -> bool:
        return True

    def find(self, prompt: Prompt) -> Beginning | None:
        length, one = self._best(prompt)
        self.found.append(length)
        if one is None:
            return None
        caches = copy.deepcopy(one.caches)
        if self.trimmable:
            for cache in caches:
                cache.trim(one.length - length)
        assert all(cache.offset == length for cache in caches if hasattr(cache, "offset"))
        return Beginning(length, caches)

    def reach(self, prompt: Prompt) -> int:
        return self._best(prompt)[0]

    def missed(self, prompt: Prompt) -> int:
        return -1

    def keep(self, prompt: Prompt, length: int, caches: list[Any], kind: Kind) -> None:
        assert 0 < length <= len(prompt.tokens)
        assert all(cache.offset == length for cache in caches if hasattr(cache, "offset"))
        if not self.forgets:
            self.kept.append(Kept(prompt, length, caches, kind))

    def shrink(self, nbytes: int) -> None:
        raise NotImplementedError

    def free(self, nbytes: int) -> None:
        raise NotImplementedError

    def _best(self, prompt: Prompt) -> tuple[int, Kept | None]:
        length, best = 0, None
        for one in self.kept:
            serves = self._serves(one, prompt)
            if serves > length:
                length, best = serves, one
        return length, best

    def _serves(self, one: Kept, prompt: Prompt) -> int:
        most = min(one.length, len(prompt.tokens) - 1)
        if one.prompt.owner != prompt.owner:
            most = min(most, one.prompt.shared)
        pairs = zip(one.prompt.tokens[:most], prompt.tokens[:most], strict=True)
        alike = next((n for n, (a, b) in enumerate(pairs) if a != b), most)
        return alike if self.trimmable or alike == one.length else 0
