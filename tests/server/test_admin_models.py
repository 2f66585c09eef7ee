"""What the list of models says of each, beside what its card has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from mlxd.control.load_progress import WAITS, LoadProgress
from mlxd.core.models import ModelCard
from mlxd.policy.load import load
from mlxd.server.admin_models import AdminModels
from mlxd.server.parts import Parts

CARD = ModelCard("m", "/m", 1, "0" * 64, 0.0, "llama", 1, "f32", 512)


@pytest.mark.parametrize(
    ("progress", "failed", "state"),
    [(None, "", ""), (None, "its files change", "its files change"), (WAITS, "late", str(WAITS))],
)
def test_a_model_whose_last_load_failed_says_why_until_it_is_tried_again(
    progress: LoadProgress | None, failed: str, state: str
) -> None:
    residency = SimpleNamespace(
        progress_of=lambda _: progress,
        failed=lambda cards: {card.name: failed for card in cards if failed},
    )
    supervisor = SimpleNamespace(slots=list)
    parts = cast("Parts", SimpleNamespace(residency=residency, supervisor=supervisor))
    assert AdminModels(parts, load())._entry(CARD, set())["state"] == state
