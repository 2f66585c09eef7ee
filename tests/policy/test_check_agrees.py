"""`mlxd policy check` says OK exactly when a reload applies, else the same errors (R13).

Three hundred mutated policy folders here; benchmarks/policy_sweeps.py has five thousand.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest

from mlxd.cli.policy.here import Here
from mlxd.policy.load import load
from tests.support.policy_agreement import agreement, checked, compared
from tests.support.policy_mutations import mutated, shipped

SETS = 60
"""benchmarks/policy_sweeps.py makes thousands."""


async def test_check_and_reload_agree_on_mutated_policies(tmp_path: Path) -> None:
    found = await agreement(range(SETS), tmp_path)

    assert found.complaints == []
    assert found.valid + found.refused == SETS
    assert SETS / 3 < found.valid < SETS * 2 / 3
    assert found.valid - found.unchanged > SETS / 5
    assert len(found.messages) > 15
    assert found.placed > found.errors * 0.9


def _folder_in_place_of_a_file(folder: Path) -> None:
    (folder / "limits.yaml").unlink()
    (folder / "limits.yaml").mkdir()


def _pipe_in_place_of_a_file(folder: Path) -> None:
    (folder / "limits.yaml").unlink()
    os.mkfifo(folder / "limits.yaml")


def _link_to_nowhere(folder: Path) -> None:
    (folder / "limits.yaml").unlink()
    (folder / "limits.yaml").symlink_to(folder / "nowhere")


def _link_to_itself(folder: Path) -> None:
    (folder / "limits.yaml").unlink()
    (folder / "limits.yaml").symlink_to(folder / "limits.yaml")


def _folder_gone(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


def _file_in_place_of_the_folder(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))
    folder.touch()


def _link_to_another_folder(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to(folder.with_name("elsewhere"))


def _no_file_left(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("change", "valid"),
    [
        (_folder_in_place_of_a_file, False),
        (_pipe_in_place_of_a_file, False),
        (_link_to_nowhere, False),
        (_link_to_itself, False),
        (_folder_gone, False),
        (_file_in_place_of_the_folder, False),
        (_link_to_another_folder, True),
        (_no_file_left, True),
    ],
)
async def test_check_and_reload_agree_on_what_is_no_file(
    tmp_path: Path, change: Callable[[Path], None], valid: bool
) -> None:
    assert await compared(tmp_path, change) == ([], valid)


@pytest.mark.slow
async def test_a_check_that_reads_other_files_is_found_out(tmp_path: Path) -> None:
    with patch.object(Here, "load", lambda self: load(None, self.overrides)):
        found = await agreement(range(40), tmp_path)

    assert any("valid True; reload: refused" in complaint for complaint in found.complaints)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_file_whose_name_is_no_text_is_named_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "limits\udcff.yaml").write_text("schema: mlxd/v1\n")

    status, said = checked(tmp_path, tmp_path / "state")
    assert (status, said["valid"]) == (2, False)
    assert said["errors"][0]["file"] == "limits\\udcff.yaml"


def test_a_number_always_gives_the_same_set() -> None:
    assert mutated(7, shipped()) == mutated(7, shipped())
    assert len({mutated(number, shipped()).told for number in range(50)}) > 40
