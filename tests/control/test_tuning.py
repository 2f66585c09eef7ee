"""Policies of batching reach every engine, at its start and while it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlxd.control.tuning import tuning_of
from mlxd.ipc.messages import Tuning
from mlxd.policy.load import load
from tests.support.daemon import write_policies
from tests.support.engines import World


def tuning(folder: Path, limits: str) -> Tuning:
    return tuning_of(load(write_policies(folder, {"limits": limits})))


@pytest.mark.parametrize(
    ("limits", "wanted"),
    [
        ("responses: {max_count: 5}\n", Tuning()),
        (
            "batching: {stall_target: 1s, min_chunk: 64, decode_share: 30%}\n"
            "tokens: {max_batch_tokens: 700}\n",
            Tuning(1.0, 64, 0.3, 700),
        ),
        ("adaptive: {enabled: true, token_gap: 60ms}\n", Tuning(stall_seconds=0.03)),
        ("adaptive: {enabled: true, token_gap: 2s}\n", Tuning()),
        ("adaptive: {enabled: false, token_gap: 60ms}\n", Tuning()),
    ],
)
def test_what_policies_make_of_it(tmp_path: Path, limits: str, wanted: Tuning) -> None:
    found = tuning(tmp_path, limits)
    assert found.stall_seconds == pytest.approx(wanted.stall_seconds)
    assert found.decode_share == pytest.approx(wanted.decode_share)
    assert (found.min_chunk, found.max_tokens) == (wanted.min_chunk, wanted.max_tokens)


def test_an_engine_is_told_at_its_start_and_at_an_edit(tmp_path: Path) -> None:
    world = World(tmp_path, {"limits": "batching: {min_chunk: 64}\n"})
    engine: Any = world.answer("a")
    assert engine.tuning.min_chunk == 64
    world.edit(limits="batching: {min_chunk: 96}\n")
    assert engine.tuning.min_chunk == 96
    world.close()
