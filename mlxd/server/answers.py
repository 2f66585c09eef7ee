"""What several endpoints write alike: an answer in JSON, and a date."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from mlxd.dialects.base import to_json


def json_response(value: Any, status: int = 200) -> web.Response:
    return web.Response(
        body=to_json(value), status=status, content_type="application/json", charset="utf-8"
    )


def iso(seconds: float) -> str:
    """RFC 3339 in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
