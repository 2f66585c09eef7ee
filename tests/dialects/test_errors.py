"""Every error of core/errors.py has its words in every dialect."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mlxd.core.errors import MlxdError, ModelNotFound, Overloaded, PolicyLine, RateLimited
from mlxd.dialects.openai.errors import NAMES

LINE = PolicyLine("limits.concurrency.max_in_flight", "5", "limits.yaml:5")


def every(kind: type[MlxdError] = MlxdError) -> Iterator[type[MlxdError]]:
    yield kind
    for inner in kind.__subclasses__():
        yield from every(inner)


KINDS = sorted(set(every()), key=lambda kind: kind.__name__)


def test_openai_has_a_name_for_every_code_and_no_other() -> None:
    assert {kind.code for kind in KINDS} == NAMES.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_is_rendered_whole_and_in_the_stream(spoken, kind) -> None:
    error = kind("what", policy=LINE)
    rendered = spoken.codec.render_error(error)
    text = rendered["error"]
    if spoken.name.startswith("openai"):
        assert rendered["error"].keys() == {"message", "type", "param", "code", "policy"}
        text = rendered["error"]["message"]
        assert rendered["error"]["policy"] == {
            "key": "limits.concurrency.max_in_flight",
            "value": "5",
            "place": "limits.yaml:5",
        }
    assert text.endswith("what' not found. Policy: " + str(LINE)) or text == error.explained()
    record = spoken.codec.encoder(spoken.call()).fail(error)
    assert record.endswith(b"\n")
    assert b"limits.yaml:5" in record


def test_ollama_says_an_error_and_nothing_else(spoken) -> None:
    if spoken.name.startswith("openai"):
        return
    assert spoken.codec.render_error(Overloaded("busy")) == {"error": "busy"}
    assert spoken.codec.render_error(ModelNotFound("x")) == {"error": "model 'x' not found"}


@pytest.mark.parametrize(
    ("error", "kind", "code", "param"),
    [
        (ModelNotFound("x"), "invalid_request_error", "model_not_found", "model"),
        (Overloaded("full"), "overloaded", "overloaded", None),
        (RateLimited("slow"), "rate_limit_error", "rate_limit_exceeded", None),
    ],
)
def test_openai_names_what_sdks_look_for(spoken, error, kind, code, param) -> None:
    if spoken.name.startswith("ollama"):
        return
    expected = {"message": error.message, "type": kind, "param": param, "code": code}
    assert spoken.codec.render_error(error) == {"error": expected}
