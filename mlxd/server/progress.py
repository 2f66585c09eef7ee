"""Writes progress as Ollama's clients read it: NDJSON, or its last record alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from mlxd.control.progress import Progress
from mlxd.core.errors import MlxdError
from mlxd.dialects.base import NDJSON, to_json
from mlxd.server.answers import json_response
from mlxd.server.edge import STREAM, common_headers
from mlxd.server.errors import in_ollama


async def answer(
    request: web.BaseRequest, lines: AsyncIterator[Progress], *, stream: bool
) -> web.StreamResponse:
    """To the end of `lines`; raises what they raise, which the stream says by itself."""
    if stream:
        return await _Stream(request).run(lines)
    last = Progress("success")
    async for line in lines:
        last = line
    return json_response(record(last))


def record(line: Progress) -> dict[str, Any]:
    """`completed` is absent while it is 0, as Ollama has it."""
    found: dict[str, Any] = {"status": line.status}
    if line.digest:
        found |= {"digest": line.digest, "total": line.total}
    if line.completed:
        found["completed"] = line.completed
    return found


class _Stream:
    """Its status line goes out with the first record: a later failure is the last one."""

    def __init__(self, request: web.BaseRequest) -> None:
        self._request = request
        self._response = web.StreamResponse(
            headers={"Content-Type": NDJSON, "Cache-Control": "no-cache"}
        )

    @property
    def begun(self) -> bool:
        return self._response.prepared

    async def fail(self, error: MlxdError) -> web.StreamResponse:
        await self._response.write(to_json(in_ollama(error)) + b"\n")
        await self._response.write_eof()
        return self._response

    async def run(self, lines: AsyncIterator[Progress]) -> web.StreamResponse:
        self._request[STREAM] = self
        async for line in lines:
            if not self.begun:
                self._response.headers.update(common_headers(self._request))
                await self._response.prepare(self._request)
            await self._response.write(to_json(record(line)) + b"\n")
        await self._response.write_eof()
        return self._response
