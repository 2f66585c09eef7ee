"""The sources of the package as syntax trees: read, parsed and walked once in a process."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TypeVar

import mlxd

PACKAGE = Path(mlxd.__file__).parent
Node = TypeVar("Node", bound=ast.AST)


class Source:
    """One file, and its nodes by their types."""

    def __init__(self, path: Path) -> None:
        self.name = str(path.relative_to(PACKAGE))
        self.text = path.read_text(encoding="utf-8")
        self._nodes: dict[type[ast.AST], list[ast.AST]] | None = None

    def nodes(self, kind: type[Node]) -> Iterator[Node]:
        """Of exactly this type, in the order of `ast.walk`."""
        if self._nodes is None:
            self._nodes = defaultdict(list)
            for node in ast.walk(ast.parse(self.text)):
                self._nodes[type(node)].append(node)
        return iter(self._nodes.get(kind, ()))  # type: ignore[arg-type]

    def says(self, *words: str) -> bool:
        """Whether one of them stands somewhere in it; without, what they name cannot be there."""
        return any(word in self.text for word in words)


@cache
def sources() -> tuple[Source, ...]:
    """All files of the package."""
    return tuple(Source(path) for path in sorted(PACKAGE.rglob("*.py")))
