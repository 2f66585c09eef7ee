"""Made-up requests to every operation: each answer is one that the document promises."""

from __future__ import annotations

import pytest

from mlxd.server.openapi.document import operations
from tests.contract.holding import Contract

pytestmark = pytest.mark.mlx

FEW, MANY = 4, 50
"""Cases of one operation."""
LABELS = sorted(f"{one.method} {one.path}" for one in operations())


@pytest.mark.parametrize("label", LABELS)
def test_an_answer_is_what_the_document_says(contract: Contract, label: str) -> None:
    assert "\n\n".join(map(str, contract.cases(label, FEW))) == ""


@pytest.mark.slow
@pytest.mark.parametrize("label", LABELS)
def test_many_answers_are(contract: Contract, label: str) -> None:
    assert "\n\n".join(map(str, contract.cases(label, MANY, start=1))) == ""
