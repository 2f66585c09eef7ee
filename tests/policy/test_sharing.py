"""A generation takes little beside the one before it, and says what it would say by itself."""

from __future__ import annotations

import gc
import shutil
import tracemalloc
from pathlib import Path

import pytest

from mlxd.policy.load import load
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.schema import KINDS
from mlxd.policy.sharing import sharing

SHIPPED = Path(__file__).parents[2] / "policies"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SHIPPED, tmp_path / "policies"))


def edited(folder: Path, most: int) -> PolicySet:
    text = f"schema: mlxd/v1\nconcurrency: {{max_in_flight: {most}}}\n"
    (folder / "limits.yaml").write_text(text)
    return load(folder)


def test_what_no_edit_touched_is_the_same(folder: Path) -> None:
    old = sharing(load(folder), load(folder))
    new = edited(folder, 9)
    both = sharing(new, old)
    same = {kind for kind in KINDS if getattr(both, kind) is getattr(old, kind)}
    assert same == set(KINDS) - {"limits"}
    assert both.limits.concurrency.max_in_flight == 9
    server = ("server", "listen", "port")
    assert both.sources[server] is old.sources[server]


def test_what_is_only_written_otherwise_is_shown_as_it_is_written(folder: Path) -> None:
    file = folder / "timeouts.yaml"
    file.write_text("schema: mlxd/v1\nqueue: 60s\n")
    old = load(folder)
    file.write_text("schema: mlxd/v1\nqueue: 1m\n")
    assert str(sharing(load(folder), old).timeouts.queue) == "1m"


def test_it_says_what_one_says_that_shares_nothing(folder: Path) -> None:
    old = sharing(load(folder), load(folder))
    new = edited(folder, 9)
    both = sharing(new, old)
    assert dict(both.sources) == dict(new.sources)
    assert len(both.sources) == len(new.sources)
    assert (both.digest, both.warnings()) == (new.digest, new.warnings())
    assert all(both.place(path) == new.place(path) for path, _ in new.leaves())
    assert () not in both.sources
    with pytest.raises(TypeError):
        both.sources[()] = None  # type: ignore[index]


def test_a_generation_takes_little_beside_another(folder: Path) -> None:
    kept = [sharing(load(folder), load(folder))]
    gc.collect()
    tracemalloc.start()
    try:
        for most in range(1, 21):
            kept.append(sharing(edited(folder, most), kept[-1]))
            kept[-1].work_out()
        gc.collect()
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken / 20 < 25_000, "all that is read of the shipped files takes six times as much"
