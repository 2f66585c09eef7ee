"""What a running process learns of an upgrade of its files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mlxd.core.installed import Installed


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A package and an interpreter."""
    package, interpreter = tmp_path / "__init__.py", tmp_path / "python"
    package.write_text('__version__ = "1"\n')
    interpreter.touch()
    return package, interpreter


def test_what_is_as_it_was_is_not_told(files: tuple[Path, Path]) -> None:
    installed = Installed(*files)
    files[0].read_text()
    files[1].write_text("the same Python, mended")
    assert installed.change() == ""
    assert Installed().change() == ""


def test_a_file_that_only_has_another_number_is_the_same(files: tuple[Path, Path]) -> None:
    installed = Installed(*files)
    shutil.copy2(files[0], files[0].with_name("again"))
    files[0].with_name("again").replace(files[0])
    assert installed.change() == ""


def test_files_of_the_same_name_are_others(files: tuple[Path, Path]) -> None:
    installed = Installed(*files)
    new = files[0].with_name("new")
    new.write_text('__version__ = "2"\n')
    new.replace(files[0])
    assert "installed anew" in installed.change()


@pytest.mark.parametrize("gone", [0, 1], ids=["package", "interpreter"])
def test_without_its_files_no_worker_starts(files: tuple[Path, Path], gone: int) -> None:
    installed = Installed(*files)
    files[gone].unlink()
    assert "have been removed" in installed.change()


def test_what_was_in_no_file_is_not_missed(tmp_path: Path) -> None:
    assert Installed(tmp_path / "archive.zip" / "__init__.py", tmp_path).change() == ""
