"""Reads a request's body behind its walls: two timers, a size, and the encodings that are read.

aiohttp inflates gzip, deflate, br and zstd while it reads: the size counted here is the inflated
one.
"""

from __future__ import annotations

import asyncio
import zlib

from aiohttp import web

from mlxd.core.errors import (
    InvalidRequest,
    PolicyLine,
    RequestTimeout,
    RequestTooLarge,
    UnsupportedEncoding,
)
from mlxd.dialects.base import Json
from mlxd.policy.load import PolicySet
from mlxd.server.body import JsonLimits, parse_json

_ENCODINGS = frozenset({"", "identity", "gzip", "deflate", "br", "zstd"})


async def read_json(request: web.BaseRequest, policies: PolicySet) -> Json:
    """The JSON object that the body is. Raises what `read_body` raises, and InvalidRequest."""
    limits = policies.server.http.json_limits
    return parse_json(
        await read_body(request, policies),
        JsonLimits(
            max_depth=limits.max_depth,
            max_nodes=limits.max_nodes,
            max_string=int(limits.max_string),
            max_int_digits=limits.max_int_digits,
        ),
        lambda name: policies.line(f"server.http.json_limits.{name}"),
    )


async def read_body(request: web.BaseRequest, policies: PolicySet) -> bytes:
    """The whole body, inflated.

    Raises RequestTimeout, RequestTooLarge, UnsupportedEncoding, InvalidRequest (cut short, or not
    what its Content-Encoding says).
    """
    http = policies.server.http
    encoding = request.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in _ENCODINGS:
        raise UnsupportedEncoding(
            f"Content-Encoding {encoding[:40]!r} is not read; send gzip, deflate, zstd or none"
        )
    if request.content_length is not None and request.content_length > http.max_body:
        raise _too_large(policies)
    try:
        async with asyncio.timeout(float(http.body_total_timeout)):
            return await _read(request, policies)
    except TimeoutError:
        raise _too_slow(policies.line("server.http.body_total_timeout")) from None
    except (web.RequestPayloadError, zlib.error) as error:
        raise InvalidRequest("the body is cut short or not encoded as it says") from error


async def _read(request: web.BaseRequest, policies: PolicySet) -> bytes:
    http = policies.server.http
    pieces: list[bytes] = []
    size = 0
    while not request.content.at_eof():
        try:
            async with asyncio.timeout(float(http.body_idle_timeout)):
                piece = await request.content.readany()
        except TimeoutError:
            raise _too_slow(policies.line("server.http.body_idle_timeout")) from None
        size += len(piece)
        if size > http.max_body:
            raise _too_large(policies)
        pieces.append(piece)
    return b"".join(pieces)


def _too_large(policies: PolicySet) -> RequestTooLarge:
    return RequestTooLarge(
        f"the request's body is larger than {int(policies.server.http.max_body)} bytes",
        policy=policies.line("server.http.max_body"),
    )


def _too_slow(line: PolicyLine) -> RequestTimeout:
    return RequestTimeout("the request's body came too slowly", policy=line)
