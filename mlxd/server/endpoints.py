"""What tables of routes are made of: methods, and endpoints."""

from __future__ import annotations

from mlxd.server.edge import Endpoint
from mlxd.server.errors import Render, in_ollama
from mlxd.server.parts import Parts

READING = frozenset({"GET", "HEAD"})
ASKING = frozenset({"POST"})
REMOVING = frozenset({"DELETE"})

Table = dict[str, tuple[frozenset[str], Endpoint]]
"""By path: the methods that it has, and who answers."""


class PartsEndpoint:
    """One that works with the daemon's parts, and words errors as Ollama does."""

    render_error: Render = staticmethod(in_ollama)

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
