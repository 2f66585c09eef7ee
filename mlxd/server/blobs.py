"""/api/blobs/sha256:DIGEST: files for /api/create."""

from __future__ import annotations

from contextlib import aclosing
from urllib.parse import unquote

from aiohttp import web

from mlxd.control.blobs import Bounds
from mlxd.core.errors import InvalidRequest
from mlxd.dialects.ollama.create import digest_of
from mlxd.policy.policy_set import PolicySet
from mlxd.server.edge import policies_of
from mlxd.server.endpoints import PartsEndpoint
from mlxd.server.intake import pieces_of

PATH = "/api/blobs/"


class Blob(PartsEndpoint):
    """HEAD asks whether it is there, POST brings it."""

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        said = unquote(request.path.removeprefix(PATH))
        digest = digest_of(said)
        if digest is None:
            raise InvalidRequest(f"invalid digest {said[:100]!r}: write sha256:<hex>")
        blobs = self._parts.library.blobs
        if request.method == "HEAD":
            return web.Response(status=200 if await blobs.has(digest) else 404)
        policies = policies_of(request)
        async with aclosing(pieces_of(request, policies)) as pieces:
            new = await blobs.receive(digest, pieces, bounds_of(policies))
        return web.Response(status=201 if new else 200)


def bounds_of(policies: PolicySet) -> Bounds:
    """models.uploads."""
    uploads = policies.models.uploads
    return Bounds(
        int(uploads.max_bytes),
        uploads.max_count,
        float(uploads.keep),
        policies.line("models.uploads.max_bytes"),
        policies.line("models.uploads.max_count"),
    )
