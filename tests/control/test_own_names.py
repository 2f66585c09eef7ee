"""Names that clients gave to models: one file each, and none of them can hurt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlxd.control import own_names
from mlxd.control.own_names import OwnName, OwnNames

COPY = OwnName("My-Model:v1", "org/model", "copy")


def test_a_name_is_there_after_a_restart(tmp_path: Path) -> None:
    OwnNames(tmp_path / "names").put(COPY)
    again = OwnNames(tmp_path / "names")
    assert again() == {"my-model:v1": "org/model"}
    assert again.get("MY-MODEL:V1") == COPY
    assert again.of("Org/Model") == [COPY]


def test_a_second_one_called_the_same_takes_its_place(tmp_path: Path) -> None:
    names = OwnNames(tmp_path)
    names.put(COPY)
    names.put(OwnName("my-model:V1", "other", "copy"))
    assert OwnNames(tmp_path)() == {"my-model:v1": "other"}
    assert len([*tmp_path.iterdir()]) == 1


def test_a_removed_name_is_gone(tmp_path: Path) -> None:
    names = OwnNames(tmp_path)
    names.put(COPY)
    names.remove(COPY)
    assert (names(), OwnNames(tmp_path)()) == ({}, {})


def test_a_name_is_no_path(tmp_path: Path) -> None:
    names = OwnNames(tmp_path / "names")
    names.put(OwnName("../../evil", "m", "copy"))
    assert [path.name for path in tmp_path.rglob("*.json")] == ["..%2F..%2Fevil.json"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        "[]",
        json.dumps({"schema": 2, "name": "x", "model": "m", "made_by": "copy"}),
        json.dumps({"schema": 1, "name": "x", "model": "m", "made_by": "magic"}),
        json.dumps({"schema": 1, "name": "x"}),
        "[" * 100_000,
    ],
)
def test_a_file_that_this_version_does_not_read_is_set_aside(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    names = OwnNames(tmp_path)
    assert names() == {}
    names.put(OwnName("x", "m", "copy"))
    (lies_aside,) = tmp_path.glob("x.json.set-aside-*")
    assert lies_aside.read_text() == text


def test_there_are_no_more_than_anybody_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_names, "MOST_NAMES", 2)
    names = OwnNames(tmp_path)
    for name in ("a", "b", "A"):
        names.put(OwnName(name, "m", "copy"))
    with pytest.raises(OSError, match="there are 2 such names already"):
        names.put(COPY)
    assert names().keys() == {"a", "b"}
