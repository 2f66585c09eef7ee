"""Names that clients gave to models: one file each, and none of them can hurt."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from unicodedata import normalize
from urllib.parse import quote

import pytest

from mlxd.control import own_names
from mlxd.control.own_names import OwnName, OwnNames
from mlxd.core.preset import Preset
from mlxd.core.request import CalledTool, Message, Sampling

COPY = OwnName("My-Model:v1", "org/model", "copy")
CREATED = OwnName(
    "kind",
    "org/model",
    "create",
    Preset(
        system="Be kind.",
        messages=(Message("assistant", "b", tool_calls=(CalledTool("f", {"a": [1]}),)),),
        sampling=Sampling(temperature=0.0, logit_bias=((1, 2.0),)),
        stop=("x",),
    ),
)


def test_a_name_is_there_after_a_restart(tmp_path: Path) -> None:
    OwnNames(tmp_path / "names").put(COPY)
    again = OwnNames(tmp_path / "names")
    assert again() == {"my-model:v1": COPY}
    assert again.get("MY-MODEL:V1") == COPY
    assert again.of("Org/Model") == [COPY]


def test_what_a_created_model_says_is_kept_with_its_name(tmp_path: Path) -> None:
    OwnNames(tmp_path).put(CREATED)
    assert OwnNames(tmp_path).get("kind") == CREATED
    assert json.loads((tmp_path / "kind.json").read_bytes())["schema"] == 2


def test_created_models_have_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = OwnNames(tmp_path)
    names.put(CREATED)
    monkeypatch.setattr(own_names, "MOST_BYTES", 10_000)
    with pytest.raises(OSError, match="more than 10000 bytes"):
        names.put(replace(CREATED, preset=Preset(system="x" * 10_000)))
    size = len((tmp_path / "kind.json").read_bytes())
    monkeypatch.setattr(own_names, "MOST_BYTES_IN_ALL", 2 * size - 1)
    names.put(CREATED)
    with pytest.raises(OSError, match="in all"):
        names.put(replace(CREATED, name="kin2"))
    assert names.get("kind") == CREATED


def test_a_second_one_called_the_same_takes_its_place(tmp_path: Path) -> None:
    names = OwnNames(tmp_path)
    names.put(COPY)
    names.put(OwnName("my-model:V1", "other", "copy"))
    assert [one.model for one in OwnNames(tmp_path)().values()] == ["other"]
    assert len([*tmp_path.iterdir()]) == 1


def test_a_removed_name_is_gone(tmp_path: Path) -> None:
    names = OwnNames(tmp_path)
    names.put(COPY)
    names.remove(COPY)
    assert (names(), OwnNames(tmp_path)()) == ({}, {})


@pytest.mark.parametrize("removed", [True, False], ids=["removed", "replaced"])
def test_a_file_of_an_older_mlxd_comes_back_under_no_name(tmp_path: Path, removed: bool) -> None:
    """That one took an accent apart from its letter for another name."""
    apart = normalize("NFD", "été")
    said = {"schema": 1, "name": apart, "model": "old", "made_by": "copy"}
    (tmp_path / f"{quote(apart)}.json").write_text(json.dumps(said))
    names = OwnNames(tmp_path)
    new = OwnName("été", "new", "copy")
    assert names()["été"].model == "old"
    if removed:
        names.remove(names()["été"])
    else:
        names.put(new)
    assert OwnNames(tmp_path)() == ({} if removed else {"été": new})
    assert len([*tmp_path.iterdir()]) == int(not removed)


def test_of_two_files_of_one_name_the_right_one_counts(tmp_path: Path) -> None:
    OwnNames(tmp_path).put(CREATED)
    kept = (tmp_path / "kind.json").read_bytes()
    for stray in ("a.json", "z.json"):
        (tmp_path / stray).write_bytes(kept.replace(b"org/model", b"another"))
    assert OwnNames(tmp_path)() == {"kind": CREATED}
    assert (tmp_path / "kind.json").read_bytes() == kept
    assert len([*tmp_path.glob("?.json.set-aside-1")]) == 2


def test_of_two_strays_of_one_name_neither_takes_the_others_place(tmp_path: Path) -> None:
    OwnNames(tmp_path).put(CREATED)
    for stray in ("a.json", "z.json"):
        (tmp_path / stray).write_bytes((tmp_path / "kind.json").read_bytes())
    (tmp_path / "kind.json").unlink()
    assert OwnNames(tmp_path)() == {"kind": CREATED}
    assert sorted(one.name for one in tmp_path.iterdir()) == ["kind.json", "z.json.set-aside-1"]


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
        json.dumps({"schema": 3, "name": "x", "model": "m", "made_by": "copy"}),
        json.dumps({"schema": 2, "name": "x", "model": "m", "made_by": "create", "preset": 1}),
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
