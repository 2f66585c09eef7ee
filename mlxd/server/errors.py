"""Each error's HTTP status: one table. Its words in each API are the dialects' `render_error`."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable
from typing import Any

from aiohttp import web

from mlxd.core.errors import (
    InsufficientMemory,
    MlxdError,
    RateLimited,
    Unauthorized,
)
from mlxd.dialects import anthropic, ollama, openai
from mlxd.dialects.base import to_json

STATUS: dict[str, int] = {
    "invalid_request": 400,
    "context_exceeded": 400,
    "previous_response_not_found": 400,
    "unsupported": 400,
    "request_timeout": 408,
    "request_too_large": 413,
    "headers_too_large": 431,
    "unsupported_encoding": 415,
    "unauthorized": 401,
    "forbidden": 403,
    "model_not_found": 404,
    "response_not_found": 404,
    "request_not_found": 404,
    "resume_expired": 404,
    "rate_limited": 429,
    "tokens_exhausted": 429,
    "tenant_busy": 429,
    "too_many_guesses": 429,
    "overloaded": 503,
    "queue_full": 503,
    "queue_timeout": 503,
    "shed": 503,
    "draining": 503,
    "insufficient_memory": 503,
    "models_busy": 503,
    "model_load_failed": 503,
    "worker_crashed": 503,
    "worker_stalled": 503,
    "breaker_open": 503,
    "model_quarantined": 503,
    "request_quarantined": 503,
    "starts_held": 503,
    "model_in_use": 409,
    "pull_failed": 502,
    "insufficient_storage": 507,
    "deadline_exceeded": 504,
    "policy_conflict": 409,
    "policy_out_of_date": 412,
    "internal_error": 500,
}
MAX_RETRY_AFTER = 60
"""Seconds for which a client that retries by itself may be made to wait."""
MAX_ID = 128

Render = Callable[[MlxdError], dict[str, Any]]

in_ollama: Render = ollama.ChatCodec().render_error
in_openai: Render = openai.ChatCodec().render_error
in_anthropic: Render = anthropic.MessagesCodec().render_error

_MESSAGES = anthropic.MessagesCodec.path


def speaks_anthropic(request: web.BaseRequest) -> bool:
    """Whether a request is of Anthropic's API: by its path, or where that is OpenAI's too, by the
    header that its clients send.
    """
    path = request.path
    if _is_anthropics(path):
        return True
    return path.startswith("/v1/") and "anthropic-version" in request.headers


def words_for(request: web.BaseRequest) -> Render:
    """How the API that a request is of says an error."""
    return in_anthropic if speaks_anthropic(request) else words_at(request.path)


def words_at(path: str) -> Render:
    """How the API that a path is of says an error, where nothing is known but the path."""
    if _is_anthropics(path):
        return in_anthropic
    return in_openai if path.startswith("/v1/") else in_ollama


def _is_anthropics(path: str) -> bool:
    return path == _MESSAGES or path.startswith(f"{_MESSAGES}/")


def given_id(text: str) -> str:
    """A caller's own id for its request, if it is short printable ASCII; else nothing."""
    return text if len(text) <= MAX_ID and text.isascii() and text.isprintable() else ""


def new_request_id() -> str:
    """For one that has none."""
    return secrets.token_hex(12)


def identity(request_id: str) -> dict[str, str]:
    """Who answers, and to which request. Which version that is, /api/version tells who may ask."""
    return {
        "Server": "mlxd",
        "X-Request-Id": request_id,
        "Request-Id": request_id,
    }


def error_body(error: MlxdError, render: Render, request_id: str) -> dict[str, Any]:
    """With the request's id, in an API that has a place for it."""
    body = render(error)
    if "request_id" in body:
        body["request_id"] = request_id
    return body


def error_headers(error: MlxdError) -> dict[str, str]:
    """What they say of the error, and of its body."""
    headers = {"Content-Type": "application/json; charset=utf-8", "X-Mlxd-Code": error.code}
    if error.policy is not None:
        headers["X-Mlxd-Policy-Key"] = error.policy.key
        headers["X-Mlxd-Policy-Place"] = error.policy.place
    if isinstance(error, InsufficientMemory) and error.needed_bytes:
        headers["X-Mlxd-Needed-Bytes"] = str(error.needed_bytes)
        headers["X-Mlxd-Available-Bytes"] = str(error.available_bytes)
    if error.retry_after is not None:
        headers |= _when_to_retry(error, error.retry_after)
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if error.in_vain:
        headers["X-Should-Retry"] = "false"
    return headers


def error_response(error: MlxdError, render: Render, request_id: str = "") -> web.Response:
    """The answer to a request that failed before its status line went out."""
    response = web.Response(
        status=STATUS[error.code],
        body=to_json(error_body(error, render, request_id)),
        headers=error_headers(error),
    )
    if error.code in ("request_timeout", "request_too_large"):
        response.force_close()
    return response


def _when_to_retry(error: MlxdError, seconds: float) -> dict[str, str]:
    """The time, up to a minute: some clients sleep as long as they are told. A quota that takes
    longer says so in RateLimit, and that asking again by itself is in vain; all else may be over
    before it was expected to be.

    `retry-after-ms` goes before Retry-After where a client knows both.
    """
    shown = min(seconds, MAX_RETRY_AFTER)
    headers = {
        "Retry-After": str(max(1, math.ceil(shown))),
        "retry-after-ms": str(max(1, math.ceil(shown * 1000))),
    }
    if seconds > MAX_RETRY_AFTER and isinstance(error, RateLimited):
        headers["X-Should-Retry"] = "false"
    return headers
