"""Refusals of generations and loads: counted, and told as events."""

from __future__ import annotations

from aiohttp import web

from mlxd.core.errors import MlxdError
from mlxd.server.edge import STORY, client_of
from mlxd.server.errors import STATUS
from mlxd.server.parts import Parts

_OURS = frozenset({429, 503, 504})
"""What is wrong with the request itself is no decision."""


def note_refusal(request: web.BaseRequest, parts: Parts, error: MlxdError) -> None:
    """Count it, and tell of it if mlxd would have served the same request at another time."""
    parts.metrics.refused(error.code)
    status = STATUS[error.code]
    if status in _OURS:
        parts.rejections.add(error, status, model=request[STORY].model, client=client_of(request))
