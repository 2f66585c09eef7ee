import json

import pytest
from aiohttp.test_utils import make_mocked_request

from mlxd.core import errors
from mlxd.core.errors import InsufficientMemory, MlxdError, Overloaded, PolicyLine
from mlxd.server.errors import (
    STATUS,
    error_response,
    in_anthropic,
    in_ollama,
    in_openai,
    words_for,
)


def every_error(kind=MlxdError):
    """Those that clients are told: core/errors.py has them all."""
    for sub in kind.__subclasses__():
        if sub.__module__ == errors.__name__:
            yield sub
            yield from every_error(sub)


def test_every_error_has_a_status_and_every_status_an_error():
    assert {error.code for error in every_error()} == set(STATUS)


def test_the_tree_in_the_docstring_is_the_tree():
    assert errors.__doc__ is not None
    for error in every_error():
        assert f"{error.__name__} " in errors.__doc__
        assert f" {error.code} " in errors.__doc__


@pytest.mark.parametrize("render", [in_ollama, in_openai, in_anthropic])
def test_a_refusal_explains_itself_in_headers_and_body(render):
    line = PolicyLine("limits.concurrency.max_in_flight", "5", "policies/limits.yaml:7")
    response = error_response(Overloaded("full", retry_after=2.2, policy=line), render)
    assert response.status == 503
    assert response.headers["Retry-After"] == "3"
    assert response.headers["X-Mlxd-Code"] == "overloaded"
    assert response.headers["X-Mlxd-Policy-Key"] == "limits.concurrency.max_in_flight"
    assert isinstance(response.body, bytes)
    assert "policies/limits.yaml:7" in json.dumps(json.loads(response.body))


@pytest.mark.parametrize(("asked", "told"), [(0.01, "1"), (59.2, "60"), (4000.0, "60")])
def test_retry_after_is_whole_seconds_and_small(asked, told):
    response = error_response(Overloaded("full", retry_after=asked), in_ollama)
    assert response.headers["Retry-After"] == told


@pytest.mark.parametrize(
    ("error", "seconds", "milliseconds", "should"),
    [
        (errors.RateLimited("slow", retry_after=0.2), "1", "200", None),
        (errors.RateLimited("slow", retry_after=59.4), "60", "59400", None),
        (errors.TokensExhausted("gone", retry_after=3600.5), "60", "60000", "false"),
        (errors.BreakerOpen("rests", retry_after=600.0), "60", "60000", None),
    ],
)
def test_nobody_is_told_to_sleep_for_long_and_who_would_be_refused_again_is_told_so(
    error, seconds, milliseconds, should
):
    headers = error_response(error, in_ollama).headers
    assert (headers["Retry-After"], headers["retry-after-ms"]) == (seconds, milliseconds)
    assert headers.get("X-Should-Retry") == should


def test_with_a_wrong_key_nobody_tries_again_by_itself():
    assert error_response(errors.Unauthorized("no"), in_ollama).headers["X-Should-Retry"] == "false"
    assert "X-Should-Retry" not in error_response(errors.Forbidden("no"), in_ollama).headers


def test_a_refusal_for_memory_names_what_was_compared():
    full = InsufficientMemory("no room", needed_bytes=9, available_bytes=4)
    headers = error_response(full, in_ollama).headers
    assert (headers["X-Mlxd-Needed-Bytes"], headers["X-Mlxd-Available-Bytes"]) == ("9", "4")
    nothing_said = error_response(InsufficientMemory("no room"), in_ollama).headers
    assert "X-Mlxd-Needed-Bytes" not in nothing_said


@pytest.mark.parametrize(
    ("path", "version", "render"),
    [
        ("/v1/messages", "", in_anthropic),
        ("/v1/messages?beta=true", "", in_anthropic),
        ("/v1/messages/batches", "", in_anthropic),
        ("/v1/models", "2023-06-01", in_anthropic),
        ("/v1/models", "", in_openai),
        ("/v1/messages-of-mine", "", in_openai),
        ("/api/tags", "2023-06-01", in_ollama),
    ],
)
def test_an_error_is_said_in_the_words_of_the_callers_api(path, version, render):
    headers = {"anthropic-version": version} if version else {}
    assert words_for(make_mocked_request("GET", path, headers=headers)) is render


def test_anthropics_errors_tell_the_requests_id():
    body = error_response(Overloaded("full"), in_anthropic, "req-1").body
    assert isinstance(body, bytes)
    assert json.loads(body)["request_id"] == "req-1"
