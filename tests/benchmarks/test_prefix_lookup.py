"""The benchmark of looks into the index, in small."""

from __future__ import annotations

import pytest

from benchmarks.prefix_lookup import SETS, measured


@pytest.mark.parametrize("name", sorted(SETS))
def test_it_measures(name: str) -> None:
    row = measured(name, 2000, 20)
    assert 0 < float(row["match_least_ms"]) <= float(row["match_ms"])
    assert 0 < float(row["index_mb"]) < 1
