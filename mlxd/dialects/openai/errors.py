"""OpenAI's words: for a wrong field, and for every error there is."""

from __future__ import annotations

from typing import Any

from mlxd.core.errors import ContextExceeded, InvalidRequest, MlxdError
from mlxd.dialects.explaining import explanation
from mlxd.dialects.fields import Fields, Json, kind_of, with_article

# Our code -> their (type, code). Complete: a test walks the tree of core/errors.py.
NAMES: dict[str, tuple[str, str]] = {
    "invalid_request": ("invalid_request_error", "invalid_request"),
    "context_exceeded": ("invalid_request_error", "context_length_exceeded"),
    "previous_response_not_found": ("invalid_request_error", "previous_response_not_found"),
    "unsupported": ("invalid_request_error", "unsupported"),
    "request_timeout": ("invalid_request_error", "request_timeout"),
    "request_too_large": ("invalid_request_error", "request_too_large"),
    "headers_too_large": ("invalid_request_error", "headers_too_large"),
    "unsupported_encoding": ("invalid_request_error", "unsupported_encoding"),
    "unauthorized": ("authentication_error", "invalid_api_key"),
    "forbidden": ("permission_error", "forbidden"),
    "model_not_found": ("invalid_request_error", "model_not_found"),
    "response_not_found": ("invalid_request_error", "response_not_found"),
    "request_not_found": ("invalid_request_error", "request_not_found"),
    "resume_expired": ("invalid_request_error", "resume_expired"),
    "rate_limited": ("rate_limit_error", "rate_limit_exceeded"),
    "tokens_exhausted": ("tokens", "rate_limit_exceeded"),
    "tenant_busy": ("rate_limit_error", "rate_limit_exceeded"),
    "too_many_guesses": ("rate_limit_error", "rate_limit_exceeded"),
    "overloaded": ("overloaded", "overloaded"),
    "queue_full": ("overloaded", "queue_full"),
    "queue_timeout": ("overloaded", "queue_timeout"),
    "shed": ("overloaded", "shed"),
    "draining": ("overloaded", "draining"),
    "insufficient_memory": ("overloaded", "insufficient_memory"),
    "models_busy": ("overloaded", "models_busy"),
    "model_load_failed": ("server_error", "model_load_failed"),
    "worker_crashed": ("server_error", "worker_crashed"),
    "worker_stalled": ("server_error", "worker_stalled"),
    "breaker_open": ("server_error", "breaker_open"),
    "model_quarantined": ("server_error", "model_quarantined"),
    "request_quarantined": ("server_error", "request_quarantined"),
    "starts_held": ("server_error", "starts_held"),
    "model_in_use": ("invalid_request_error", "model_in_use"),
    "pull_failed": ("server_error", "pull_failed"),
    "insufficient_storage": ("server_error", "insufficient_storage"),
    "deadline_exceeded": ("server_error", "deadline_exceeded"),
    "policy_conflict": ("invalid_request_error", "policy_conflict"),
    "policy_out_of_date": ("invalid_request_error", "policy_out_of_date"),
    "internal_error": ("server_error", "internal_error"),
}


_TOO_LONG = "This model's maximum context length is {}: "
"""What clients look for beside the code. LiteLLM goes by it alone, and so do agents built on it."""


def words_of(error: MlxdError) -> str:
    words = error.explained()
    if not isinstance(error, ContextExceeded):
        return words
    most = error.numbers.get("allowed_tokens")
    return _TOO_LONG.format("exceeded" if most is None else f"{most} tokens for a prompt") + words


def render_error(error: MlxdError) -> Json:
    kind, code = NAMES[error.code]
    inner: Json = {
        "message": words_of(error),
        "type": kind,
        "param": error.param,
        "code": code,
    }
    return {"error": inner | explanation(error)}


def complain(path: str, expected: str, found: Any) -> str:
    got = "null" if found is None else with_article(kind_of(found))
    return f"Invalid type for '{path}': expected {with_article(expected)}, but got {got} instead."


def required(fields: Fields, name: str) -> str:
    """A text that is there and not empty."""
    value = fields.text(name)
    if not value:
        raise InvalidRequest(
            f"Missing required parameter: '{fields.path(name)}'.", param=fields.path(name)
        )
    return value
