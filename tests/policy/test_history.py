"""What is kept of each generation, and the writing of its files."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from mlxd.policy import rollback
from mlxd.policy.history import KEPT, Generation, History
from mlxd.policy.rollback import WriteBack

RAW = "schema: mlxd/v1\r\n# Ünïcödé, windows' line ends\r\n".encode()


def generation(number: int) -> Generation:
    return Generation(number, "/p", {"limits.yaml": RAW}, "d" * 64, 1e9, "admin", "uid 0")


def names(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()]


def writing(history: History, folder: Path, contents: dict[str, bytes | None]) -> WriteBack:
    """Of what was found there."""
    seen = {file.name: file.read_bytes() for file in folder.iterdir()}
    return WriteBack(history, folder, seen, contents)


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(tmp_path / "state" / "lkg")


def test_a_generation_is_kept_verbatim_and_for_nobody_else(history: History) -> None:
    history.record(generation(3))
    assert history.get(3) == generation(3)
    file = history.folder / "00000003.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(history.folder.stat().st_mode) == 0o700


def test_the_last_ones_are_kept(history: History) -> None:
    for number in range(1, KEPT + 4):
        history.record(generation(number))
    assert history.numbers() == list(range(4, KEPT + 4))
    assert next(history.newest_first()).number == KEPT + 3


@pytest.mark.parametrize("text", ["", "{}", "[]", "{", '{"version": 99}', "\0"])
def test_what_another_version_wrote_or_is_damaged_is_told_and_left_alone(
    history: History, text: str
) -> None:
    history.record(generation(1))
    strange = history.folder / "00000002.json"
    strange.write_text(text)
    assert history.get(2) is None
    assert [one.number for one in history.newest_first()] == [1]
    history.tidy()
    assert strange.read_text() == text
    (told,) = history.unread()
    assert told.startswith("policy generation 2 cannot be used: ")


def test_a_folder_in_the_place_of_a_generation_keeps_none_from_being_forgotten(
    history: History,
) -> None:
    (history.folder / "00000001.json").mkdir(parents=True)
    history.tidy()
    for number in range(2, KEPT + 4):
        history.record(generation(number))
    assert len(history.numbers()) == KEPT


def test_without_a_state_folder_there_is_no_history(history: History) -> None:
    assert history.numbers() == []
    assert list(history.newest_first()) == []
    assert history.get(1) is None


class TestWritingBack:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        folder = tmp_path / "policies"
        folder.mkdir()
        (folder / "limits.yaml").write_text("old")
        (folder / "timeouts.yaml").write_text("old")
        return folder

    def test_files_are_written_removed_and_keep_their_mode(
        self, history: History, folder: Path
    ) -> None:
        (folder / "limits.yaml").chmod(0o640)
        writing(history, folder, {"limits.yaml": RAW, "timeouts.yaml": None}).write()
        assert (folder / "limits.yaml").read_bytes() == RAW
        assert stat.S_IMODE((folder / "limits.yaml").stat().st_mode) == 0o640
        assert names(folder) == ["limits.yaml"]

    def test_a_link_stays_a_link(self, history: History, folder: Path, tmp_path: Path) -> None:
        real = tmp_path / "real.yaml"
        real.write_text("old")
        (folder / "limits.yaml").unlink()
        (folder / "limits.yaml").symlink_to(real)
        writing(history, folder, {"limits.yaml": b"new"}).write()
        assert (folder / "limits.yaml").is_symlink()
        assert real.read_bytes() == b"new"

    def test_one_file_that_cannot_be_written_leaves_all_as_they_were(
        self, history: History, folder: Path
    ) -> None:
        contents: dict[str, bytes | None] = {
            "limits.yaml": b"new",
            "timeouts.yaml": None,
            "gone/server.yaml": b"new",
        }
        with pytest.raises(FileNotFoundError):
            writing(history, folder, contents).write()
        assert (folder / "limits.yaml").read_text() == "old"
        assert (folder / "timeouts.yaml").read_text() == "old"

    @staticmethod
    def begun(history: History, folder: Path) -> Path:
        """The note of a write that was killed before its first file."""
        history.folder.mkdir(parents=True)
        note = history.folder / "writing.json"
        files = {"limits.yaml": "new", "timeouts.yaml": None}
        old = {"limits.yaml": "old", "timeouts.yaml": "old"}
        said = {"version": 1, "folder": str(folder), "new": files, "old": old}
        note.write_text(json.dumps(said))
        return note

    def test_what_was_begun_is_finished_by_the_next_start(
        self, history: History, folder: Path
    ) -> None:
        note = self.begun(history, folder)
        rollback.finish(history)
        assert names(folder) == ["limits.yaml"]
        assert (folder / "limits.yaml").read_text() == "new"
        assert not note.exists()

    def test_what_was_edited_since_is_not_overwritten(self, history: History, folder: Path) -> None:
        note = self.begun(history, folder)
        (folder / "timeouts.yaml").write_text("edited by hand, before the next start")
        rollback.finish(history)
        assert (folder / "limits.yaml").read_text() == "old"
        assert (folder / "timeouts.yaml").read_text().startswith("edited")
        assert not note.exists()

    def test_what_was_saved_meanwhile_is_not_overwritten(
        self, history: History, folder: Path
    ) -> None:
        back = writing(history, folder, {"limits.yaml": b"new", "timeouts.yaml": b"new"})
        (folder / "timeouts.yaml").write_text("saved meanwhile")
        with pytest.raises(OSError, match="edited meanwhile"):
            back.write()
        assert (folder / "limits.yaml").read_text() == "old"
        assert (folder / "timeouts.yaml").read_text() == "saved meanwhile"

    def test_a_file_that_is_no_text_is_put_back(self, history: History, folder: Path) -> None:
        (folder / "limits.yaml").write_bytes(b"\xff\xfe")
        back = writing(history, folder, {"limits.yaml": b"new"})
        back.write()
        assert (folder / "limits.yaml").read_bytes() == b"new"
        back.undo()
        assert (folder / "limits.yaml").read_bytes() == b"\xff\xfe"

    @pytest.mark.parametrize("text", ["", "[]", '{"version": 2, "files": {}}', "{"])
    def test_a_note_that_cannot_be_read_is_set_aside(self, history: History, text: str) -> None:
        history.folder.mkdir(parents=True)
        (history.folder / "writing.json").write_text(text)
        rollback.finish(history)
        (lies_aside,) = names(history.folder)
        assert lies_aside.startswith("writing.json.set-aside-")


def test_equal_generations_are_equal() -> None:
    assert generation(1) != replace(generation(1), number=2)
