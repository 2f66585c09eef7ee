"""Anthropic's words: for a wrong field, and for every error there is."""

from __future__ import annotations

from typing import Any

from mlxd.core.errors import ContextExceeded, InvalidRequest, MlxdError
from mlxd.dialects.explaining import explanation
from mlxd.dialects.fields import Fields, Json, kind_of, with_article

# Our code -> their type. Complete: a test walks the tree of core/errors.py.
NAMES: dict[str, str] = {
    "invalid_request": "invalid_request_error",
    "context_exceeded": "invalid_request_error",
    "unsupported": "invalid_request_error",
    "previous_response_not_found": "invalid_request_error",
    "request_timeout": "invalid_request_error",
    "request_too_large": "request_too_large",
    "headers_too_large": "invalid_request_error",
    "unsupported_encoding": "invalid_request_error",
    "unauthorized": "authentication_error",
    "forbidden": "permission_error",
    "model_not_found": "not_found_error",
    "response_not_found": "not_found_error",
    "request_not_found": "not_found_error",
    "resume_expired": "not_found_error",
    "rate_limited": "rate_limit_error",
    "tokens_exhausted": "rate_limit_error",
    "tenant_busy": "rate_limit_error",
    "too_many_guesses": "rate_limit_error",
    "overloaded": "overloaded_error",
    "queue_full": "overloaded_error",
    "queue_timeout": "overloaded_error",
    "shed": "overloaded_error",
    "draining": "overloaded_error",
    "insufficient_memory": "overloaded_error",
    "models_busy": "overloaded_error",
    "model_load_failed": "api_error",
    "worker_crashed": "api_error",
    "worker_stalled": "api_error",
    "breaker_open": "api_error",
    "model_quarantined": "api_error",
    "request_quarantined": "api_error",
    "starts_held": "api_error",
    "model_in_use": "conflict_error",
    "pull_failed": "api_error",
    "insufficient_storage": "api_error",
    "deadline_exceeded": "timeout_error",
    "policy_conflict": "conflict_error",
    "policy_out_of_date": "invalid_request_error",
    "internal_error": "api_error",
}
_TOO_LONG = "prompt is too long: "
_COUNTED = "{} tokens > {} maximum: "
"""What coding agents look for: then they shorten the conversation by the difference and try again.
"""


def render_error(error: MlxdError, request_id: str | None = None) -> Json:
    """`request_id` has its place here; where None is given, whoever sends this knows it."""
    inner: Json = {"type": NAMES[error.code], "message": _words_of(error)}
    return {"type": "error", "error": inner | explanation(error), "request_id": request_id}


def _words_of(error: MlxdError) -> str:
    words = error.explained()
    if not isinstance(error, ContextExceeded):
        return words
    numbers = error.numbers
    asked = numbers.get("prompt_tokens", numbers.get("prompt_tokens_at_least"))
    most = numbers.get("allowed_tokens")
    known = asked is not None and most is not None
    return _TOO_LONG + (_COUNTED.format(asked, most) if known else "") + words


def complain(path: str, expected: str, found: Any) -> str:
    return f"{path}: expected {with_article(expected)}, but got {_found(found)}"


def missing(fields: Fields, name: str) -> InvalidRequest:
    """To be raised for a field that has to be there."""
    path = fields.path(name)
    return InvalidRequest(f"{path}: Field required", param=path)


def required(fields: Fields, name: str) -> str:
    """A text that says something."""
    value = fields.text(name)
    if not value:
        raise missing(fields, name)
    return value


def _found(value: Any) -> str:
    return "null" if value is None else with_article(kind_of(value))
