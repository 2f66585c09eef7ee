"""Refusals of generations and loads, told as events."""

from __future__ import annotations

from aiohttp import web

from mlxd.core.errors import MlxdError
from mlxd.server.edge import MODEL, client_of
from mlxd.server.errors import STATUS
from mlxd.telemetry.rejections import Rejections

_OURS = frozenset({429, 503, 504})
"""What is wrong with the request itself is no decision."""


def note_refusal(request: web.BaseRequest, rejections: Rejections, error: MlxdError) -> None:
    """Tell of it, if mlxd would have served the same request at another time."""
    status = STATUS[error.code]
    if status in _OURS:
        rejections.add(error, status, model=request.get(MODEL, ""), client=client_of(request))
