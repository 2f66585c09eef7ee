"""The document is one of OpenAPI 3.1."""

from __future__ import annotations

from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR

from mlxd.server.openapi.document import document


def test_the_document_is_valid() -> None:
    wrong = [f"{error.instance_path}: {error.message}" for error in
             OPENAPI_31_VALIDATOR.iter_errors(document())]  # fmt: skip
    assert wrong == []


def test_a_document_that_is_not_would_be_seen() -> None:
    """What is judged by does judge."""
    whole = document()
    whole["paths"]["/"]["get"]["parameters"] = [{"name": "x"}]
    assert not OPENAPI_31_VALIDATOR.is_valid(whole)
