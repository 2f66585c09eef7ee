"""Small files of a model folder, and what may lie there in their place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlxd.control import reading
from mlxd.control.additions import read_adapter, read_template
from mlxd.control.checksums import damage_of
from mlxd.control.layouts import models_under
from mlxd.control.model_files import read_card
from mlxd.control.reading import (
    OutOfFiles,
    TooManyError,
    UnreadableModel,
    exists,
    json_members,
    json_object,
    members,
    opened,
    text_of,
)
from tests.control.test_checksums import by_list
from tests.control.test_model_files import write_adapter, write_model
from tests.support.few_files import no_files


@pytest.mark.parametrize("change", [b"longer", b"{}"], ids=["another size", "another time"])
def test_a_file_that_changes_while_it_is_read_is_not_believed(
    tmp_path: Path, change: bytes
) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(b"{}")
    with (
        pytest.raises(UnreadableModel, match=r"its config\.json changes while it is read"),
        opened(file),
    ):
        file.write_bytes(change)


def test_what_is_too_large_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    with file.open("wb") as stream:
        stream.truncate(reading.MAX_FILE_BYTES + 1)
    with pytest.raises(UnreadableModel, match="is too large"):
        json_object(file)


def test_of_a_large_file_only_the_members_that_are_wanted_are_built(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer_config.json"
    most = 2 * reading.MAX_FILE_BYTES
    junk = "[" + "[]," * 2**19 + "1]"
    file.write_text(f'{{"junk": {junk}, "a": {{"b": 1}}, "other": 2}}')
    assert json_members(file, ("a", "absent"), most) == {"a": {"b": 1}}
    with pytest.raises(UnreadableModel, match="is too large"):
        json_members(file, ("junk",), most)
    with pytest.raises(UnreadableModel, match="is too large"):
        json_members(file, ("a",), reading.MAX_FILE_BYTES)


@pytest.mark.parametrize("raw", [b"[%b1]", b'{"a": [%b1}', b'{"a": "\xff", "b": [%b1]}'])
def test_a_large_file_that_is_no_object_is_said(tmp_path: Path, raw: bytes) -> None:
    file = tmp_path / "tokenizer_config.json"
    file.write_bytes(raw % (b"1," * 2**20))
    with pytest.raises(UnreadableModel, match="is not JSON"):
        json_members(file, ("a",), 4 * reading.MAX_FILE_BYTES)


def test_members_are_counted_and_twins_are_kept() -> None:
    assert members(b'{"a": 1, "a": [ 2]}', 2) == [("a", b"1"), ("a", b"[ 2]")]
    with pytest.raises(TooManyError):
        members(b'{"a": 1, "a": [2]}', 1)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_file_that_git_lfs_has_not_fetched_is_told_as_that(tmp_path: Path, name: str) -> None:
    folder = write_model(tmp_path / "m")
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n"
    (folder / name).write_text(pointer)
    assert f"its {name} is a pointer of Git LFS" in read_card(folder, "m").unavailable


def test_a_text_that_is_too_large_is_not_cut(tmp_path: Path) -> None:
    file = tmp_path / "chat_template.jinja"
    file.write_bytes(b"a" * (reading.MAX_FILE_BYTES + 1))
    with pytest.raises(UnreadableModel, match="is too large"):
        text_of(file)


def test_of_a_text_only_the_beginning_is_read_and_bytes_that_are_none_are_marked(
    tmp_path: Path,
) -> None:
    file = tmp_path / "LICENSE"
    file.write_bytes(b"ab\xffcd")
    assert text_of(file, 4) == "ab\ufffdc"


def test_a_link_to_nowhere_is_there_and_cannot_be_read(tmp_path: Path) -> None:
    link = tmp_path / "config.json"
    link.symlink_to("gone")
    assert exists(link)
    with pytest.raises(UnreadableModel, match="a link that leads nowhere"):
        json_object(link)
    with pytest.raises(UnreadableModel, match=r"it has no other\.json"):
        json_object(tmp_path / "other.json")


def _places(root: Path) -> list[Any]:
    return list(models_under(root))


@pytest.mark.parametrize(
    ("read", "where"),
    [
        (text_of, "own.jinja"),
        (_places, "models"),
        (_places, "models/plain"),
        (lambda folder: read_card(folder, "plain"), "models/plain"),
        (damage_of, "models/plain"),
        (read_adapter, "adapter"),
        (read_template, "own.jinja"),
    ],
)
def test_out_of_files_nothing_is_said_of_what_was_not_read(
    tmp_path: Path, read: Callable[[Path], Any], where: str
) -> None:
    """Else all models were gone for as long as a flood of connections lasts."""
    by_list(write_model(tmp_path / "models" / "plain"))
    write_adapter(tmp_path / "adapter")
    (tmp_path / "own.jinja").write_text("{{ messages }}")
    before = read(tmp_path / where)
    with no_files(), pytest.raises(OutOfFiles):
        read(tmp_path / where)
    assert read(tmp_path / where) == before
