"""What several endpoints write alike: an answer in JSON, and a date."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from mlxd.dialects.base import to_json

_MANY = 200
"""Elements of a list or a mapping."""


def json_response(value: Any, status: int = 200) -> web.Response:
    return _response(to_json(value), status)


def large_json_response(value: dict[str, Any]) -> web.Response:
    """The same, for a thread: others get Python's lock between the elements of its lists and
    mappings.
    """
    return _response(b"".join(_in_parts(value)), 200)


def is_large(value: dict[str, Any]) -> bool:
    """Whether it takes the event loop too long to write."""
    return any(len(one) > _MANY for one in value.values() if isinstance(one, list | dict))


def _response(body: bytes, status: int) -> web.Response:
    return web.Response(body=body, status=status, content_type="application/json", charset="utf-8")


def _in_parts(value: dict[str, Any]) -> Iterator[bytes]:
    for n, (key, one) in enumerate(value.items()):
        yield (b"," if n else b"{") + to_json(key) + b":"
        if isinstance(one, list) and one and isinstance(one[0], list | dict):
            for at, element in enumerate(one):
                yield (b"," if at else b"[") + to_json(element)
            yield b"]"
        elif isinstance(one, dict) and len(one) > _MANY:
            for at, (name, element) in enumerate(one.items()):
                yield (b"," if at else b"{") + to_json(name) + b":" + to_json(element)
            yield b"}"
        else:
            yield to_json(one)
    yield b"}" if value else b"{}"


def iso(seconds: float) -> str:
    """RFC 3339 in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
