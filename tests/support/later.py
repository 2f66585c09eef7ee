"""A package that only processes pay for that run its tests: each of them collects all files."""

from __future__ import annotations

import importlib
from typing import Any


class Later:
    """Imported when something is first taken from it."""

    def __init__(self, package: str) -> None:
        self._package = package

    def __getattr__(self, name: str) -> Any:
        """Whoever collects tests looks for private names: there are none."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(importlib.import_module(self._package), name)
