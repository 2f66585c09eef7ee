"""Targets into files: `mlxd service render`, and what is committed under packaging/."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from mlxd.service.facts import Facts
from mlxd.service.layout import Layout

Files: TypeAlias = Mapping[str, str]
"""Contents by name, relative to the target's folder: `mlxd.service`, `mlxd.service.d/254.conf`."""
Renderer: TypeAlias = Callable[[Facts, Layout], Files]
