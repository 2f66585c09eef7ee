"""What a policy refers to and never holds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mlxd.policy import credential


def test_a_credential_is_in_the_folder_of_the_service_manager(tmp_path: Path) -> None:
    (tmp_path / "hook").write_text("s3cret\n")
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert credential.read("credential:hook", environ) == "s3cret"


def test_a_file_is_read_anew_each_time(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(b" one two\r\n")
    assert credential.read(str(file), {}) == " one two"
    file.write_text("three")
    assert credential.read(str(file), {}) == "three"


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"", "empty"), (b"\n", "empty"), (b"x" * 70_000, "long"), (b"\xff\xfe", "no text")],
)
def test_what_is_no_secret_is_refused_and_not_quoted(
    tmp_path: Path, content: bytes, why: str
) -> None:
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(credential.Unreadable, match=why) as refused:
        credential.read(str(tmp_path / "key"), {})
    assert str(tmp_path) not in str(refused.value)


def test_only_a_regular_file_is_read_and_nothing_is_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for strange in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(credential.Unreadable, match="no regular file"):
            credential.read(str(strange), {})


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(credential.Unreadable, match="CREDENTIALS_DIRECTORY is not set"):
        credential.read("credential:hook", {})
    with pytest.raises(credential.Unreadable, match="No such file") as refused:
        credential.read("credential:hook", {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert str(tmp_path) not in str(refused.value)
