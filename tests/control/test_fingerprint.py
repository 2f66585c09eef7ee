"""What an answer says it was computed by."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from mlxd.control import fingerprint
from mlxd.control.fingerprint import fingerprint_of
from mlxd.core.models import ModelCard
from mlxd.core.request import Sampling

CARD = ModelCard("m", "/m", 1, "0" * 64, 0.0, "llama", 1, "f32", 512)


def test_another_name_place_or_date_changes_nothing() -> None:
    other = replace(CARD, name="n", path="/n", modified=1.0, copy_of="m", aliases=("x",))
    assert re.fullmatch("fp_[0-9a-f]{10}", fingerprint_of(CARD))
    assert fingerprint_of(other) == fingerprint_of(CARD)


@pytest.mark.parametrize(
    "change",
    [
        {"digest": "1" * 64},
        {"chat_template": "{{ messages }}"},
        {"sampling": Sampling(temperature=0.5)},
        {"kv_bits": 4},
    ],
    ids=str,
)
def test_what_changes_the_text_changes_it(change: dict[str, object]) -> None:
    assert fingerprint_of(replace(CARD, **change)) != fingerprint_of(CARD)  # type: ignore[arg-type]


def test_another_engine_changes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = fingerprint_of(CARD)
    monkeypatch.setattr(fingerprint, "_engine", lambda: "mlx 9")
    fingerprint._fingerprint.cache_clear()
    assert fingerprint_of(CARD) != now
    fingerprint._fingerprint.cache_clear()
