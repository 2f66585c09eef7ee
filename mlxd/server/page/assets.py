"""The page's files, as they lie in the package."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TypeVar

from aiohttp import web

from mlxd.core.errors import Forbidden
from mlxd.core.threads import Threads
from mlxd.server.edge import Endpoint, policies_of
from mlxd.server.errors import Render, in_ollama
from mlxd.server.identity import ASSETS

STATIC = Path(__file__).parent / "static"
_INDEX = "index.html"
_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
    " require-trusted-types-for 'script'; trusted-types 'none'"
)
_GUARDS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}
R = TypeVar("R", bound=web.StreamResponse)


def guarded(response: R) -> R:
    """It loads nothing from elsewhere, is framed by nobody, and kept nowhere."""
    response.headers.update(_GUARDS)
    return response


def check_served(request: web.BaseRequest) -> None:
    """Raises Forbidden where policy has no page."""
    policies = policies_of(request)
    if not policies.server.page:
        raise Forbidden(
            "the page is not served here",
            policy=policies.line("server.page"),
            would_pass="the same with `server.page: true`",
        )


class Assets:
    """`GET /ui`, and the files below /ui/assets. Read once, when they are first asked for: an
    upgrade under a running daemon mixes no versions.
    """

    render_error: Render = staticmethod(in_ollama)

    def __init__(self, otherwise: Endpoint, folder: Path = STATIC) -> None:
        """`otherwise` answers for what is no file."""
        self._otherwise = otherwise
        self._folder = folder
        self._threads = Threads("page")
        self._files: Mapping[str, bytes] | None = None

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        check_served(request)
        if self._files is None:
            self._files = await self._threads.run(_read, self._folder)
        name = request.path.removeprefix(ASSETS) if request.path.startswith(ASSETS) else _INDEX
        body = self._files.get(name)
        if body is None:
            return await self._otherwise(request)
        return _answer(request, name, body)


class ToPage:
    """`GET /ui/`."""

    render_error: Render = staticmethod(in_ollama)

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Relative, so that it holds behind a proxy that serves mlxd below a path."""
        check_served(request)
        return guarded(web.Response(status=308, headers={"Location": "../ui"}))


def _answer(request: web.BaseRequest, name: str, body: bytes) -> web.Response:
    etag = f'"{hashlib.sha256(body).hexdigest()[:24]}"'
    known = etag in request.headers.get("If-None-Match", "")
    response = web.Response(status=304) if known else _whole(name, body)
    guarded(response).headers["ETag"] = etag
    response.headers["Cache-Control"] = "no-cache"
    return response


def _whole(name: str, body: bytes) -> web.Response:
    kind = _TYPES[PurePosixPath(name).suffix]
    return web.Response(body=body, content_type=kind, charset="utf-8")


def _read(folder: Path) -> dict[str, bytes]:
    """By their path below `folder`. Raises OSError."""
    files = (file for file in folder.rglob("*") if file.suffix in _TYPES and file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}
