"""The bytes of a model against recorded checksums."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import threading
from pathlib import Path

import pytest

from mlxd.control import checksums as module
from mlxd.control.checksums import Checksums, damage_of, recorded
from mlxd.control.model_files import SUMS, read_card
from tests.control.test_model_files import write_model

WRONG = "the bytes of its model.safetensors are not those of the recorded checksum"


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def flip(file: Path) -> None:
    """Its last byte is another, and nothing else of it."""
    raw = file.read_bytes()
    file.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))


def by_list(folder: Path) -> None:
    file = folder / "model.safetensors"
    (folder / SUMS).write_text(f"# of ours\n{sha256(file).upper()} *{file.name}\nnonsense\n")


def by_blob(folder: Path) -> None:
    file = folder / "model.safetensors"
    blobs = folder.parent / "blobs"
    blobs.mkdir()
    blob = blobs / sha256(file)
    file.rename(blob)
    file.symlink_to(Path("..", "blobs", blob.name))


def by_note(folder: Path) -> None:
    notes = folder / ".cache" / "huggingface" / "download"
    notes.mkdir(parents=True)
    checksum = sha256(folder / "model.safetensors")
    (notes / "model.safetensors.metadata").write_text(f"{'a' * 40}\n{checksum}\n1700000000.0\n")
    (notes / "config.json.metadata").write_text(f"{'a' * 40}\n{'b' * 40}\n1700000000.0\n")


@pytest.mark.parametrize("record", [by_list, by_blob, by_note])
def test_a_byte_that_is_another_is_found_by_any_record(tmp_path: Path, record: object) -> None:
    folder = write_model(tmp_path / "m")
    record(folder)  # type: ignore[operator]
    assert set(recorded(folder)) == {"model.safetensors"}
    assert damage_of(folder) == ""
    flip(folder / "model.safetensors")
    assert damage_of(folder) == WRONG


def test_what_grows_beside_its_files_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model(tmp_path / "m")
    by_list(folder)

    def meanwhile(file: Path) -> str:
        (folder / ".model.safetensors.Xq3vZa").write_text("more of it")
        return sha256(file)

    monkeypatch.setattr("mlxd.control.checksums._sha256", meanwhile)
    assert damage_of(folder) == ""


def test_what_no_engine_reads_is_not_compared(tmp_path: Path) -> None:
    """Nobody would notice that it was mended: only what is read makes a model another."""
    folder = write_model(tmp_path / "m", files={"curve.png": "a picture"})
    (folder / SUMS).write_text(f"{'0' * 64} *curve.png\n")
    assert damage_of(folder) == ""


def test_without_a_record_there_is_nothing_to_compare(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    (folder / "model.safetensors").rename(tmp_path / "blob")
    (folder / "model.safetensors").symlink_to(tmp_path / "blob")
    assert recorded(folder) == {}
    assert damage_of(folder) == ""


def test_a_listed_file_that_is_not_there_is_damage(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    (folder / SUMS).write_text(f"{'0' * 64}  model-2.safetensors\n")
    assert damage_of(folder).startswith("its model-2.safetensors cannot be read: no such file")


def test_a_listed_name_that_no_file_can_have_is_passed_over(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    (folder / SUMS).write_text(f"{'0' * 64}  model\0.safetensors\n")
    assert recorded(folder) == {}
    assert damage_of(folder) == ""


class Counted:
    def __init__(self) -> None:
        self.checked: list[str] = []
        self.shut = threading.Event()
        self.shut.set()

    def __call__(self, folder: Path) -> str:
        self.shut.wait()
        self.checked.append(folder.name)
        return damage_of(folder)


async def test_a_model_is_compared_once_until_its_files_change(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    by_list(folder)
    check = Counted()
    checksums = Checksums(check)
    card = read_card(folder, "m")
    assert checksums.known(card) == ""
    assert await asyncio.gather(*(checksums.damage(card) for _ in range(5))) == [""] * 5
    assert await checksums.damage(read_card(folder, "m")) == ""
    assert check.checked == ["m"]
    flip(folder / "model.safetensors")
    changed = read_card(folder, "m")
    assert await checksums.damage(changed) == WRONG
    assert (checksums.known(changed), checksums.known(card)) == (WRONG, "")


@pytest.mark.parametrize("breaks", ["reading", "gone"])
async def test_what_a_disk_did_not_give_for_a_moment_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaks: str
) -> None:
    """As one of a network does: nobody touches the files when it is back."""
    folder = write_model(tmp_path / "m", files={"vocab.txt": "a b c"})
    listed = ("model.safetensors", "vocab.txt")
    (folder / SUMS).write_text("".join(f"{sha256(folder / n)} *{n}\n" for n in listed))
    checksums, card = Checksums(), read_card(folder, "m")

    def read(file: Path) -> str:
        if breaks == "reading":
            raise OSError(errno.ETIMEDOUT, "Connection timed out")
        folder.rename(tmp_path / "elsewhere")
        return by_checksums(file)

    with monkeypatch.context() as patch:
        by_checksums = module._sha256
        patch.setattr(module, "_sha256", read)
        assert await checksums.damage(card)
    if breaks == "gone":
        (tmp_path / "elsewhere").rename(folder)
    assert checksums.known(card) == ""
    assert await checksums.damage(card) == ""


async def test_a_comparison_that_takes_long_holds_up_no_other_model(tmp_path: Path) -> None:
    slow, quick = Counted(), write_model(tmp_path / "quick")
    checksums = Checksums(lambda folder: "" if folder.name == "quick" else slow(folder))
    slow.shut.clear()
    waiting = asyncio.create_task(checksums.damage(read_card(write_model(tmp_path / "s"), "s")))
    await asyncio.wait_for(checksums.damage(read_card(quick, "quick")), 5)
    assert not waiting.done()
    slow.shut.set()
    assert await waiting == ""
