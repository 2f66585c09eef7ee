"""The daemon's own log file: bounded, private, followed when moved, and waited for by nobody."""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlxd.telemetry import log_file, logs
from mlxd.telemetry.log_file import LogFile, RotatedFile, Target
from mlxd.telemetry.sink import Sink
from tests.support.few_threads import no_threads


def record(message: str) -> logging.LogRecord:
    return logging.LogRecord("mlxd.x", logging.INFO, "f", 1, message, (), None)


def until(fact: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """What stands for stderr."""
    ends = os.pipe()
    os.set_blocking(ends[0], False)
    yield ends
    for end in ends:
        os.close(end)


@pytest.fixture
def made(tmp_path: Path, pipe: tuple[int, int]) -> Iterator[Callable[..., LogFile]]:
    files: list[LogFile] = []

    def make(path: Path = tmp_path / "logs" / "mlxd.log") -> LogFile:
        files.append(LogFile(Target(path, 1000, 2), Sink(pipe[1])))
        return files[-1]

    yield make
    for file in files:
        file.close()


class TestRotatedFile:
    @pytest.fixture
    def target(self, tmp_path: Path) -> Target:
        return Target(tmp_path / "logs" / "mlxd.log", size=10, keep=2)

    @pytest.fixture
    def file(self, target: Target) -> Iterator[RotatedFile]:
        file = RotatedFile(target)
        yield file
        file.close()

    @staticmethod
    def texts(target: Target) -> dict[str, str]:
        return {path.name: path.read_text() for path in sorted(target.path.parent.iterdir())}

    def test_it_is_private(self, file: RotatedFile, target: Target) -> None:
        file.write(b"one\n")
        assert stat.S_IMODE(target.path.stat().st_mode) == 0o600
        assert stat.S_IMODE(target.path.parent.stat().st_mode) == 0o700

    def test_a_full_one_is_begun_anew_and_so_many_are_kept(
        self, file: RotatedFile, target: Target
    ) -> None:
        for number in range(1, 9):
            file.write(b"line%d\n" % number)
        assert self.texts(target) == {
            "mlxd.log": "line8\n", "mlxd.log.1": "line7\n", "mlxd.log.2": "line6\n",
        }  # fmt: skip

    def test_what_an_earlier_run_left_counts(self, file: RotatedFile, target: Target) -> None:
        target.path.parent.mkdir()
        target.path.write_text("12345678\n")
        for number in range(1, 6):
            target.path.with_name(f"mlxd.log.{number}").touch()
        others = {"mlxd.log.old", "mlxd.log.01", "mlxd.log.0"}
        for name in others:
            target.path.with_name(name).touch()
        file.write(b"next\n")
        assert set(self.texts(target)) == {"mlxd.log", "mlxd.log.1", "mlxd.log.2", *others}

    def test_none_may_be_kept(self, file: RotatedFile, target: Target) -> None:
        file.target = Target(target.path, 10, 0)
        for number in range(1, 4):
            file.write(b"line%d\n" % number)
        assert self.texts(target) == {"mlxd.log": "line3\n"}

    def test_a_line_that_is_longer_than_a_file_is_a_file(
        self, file: RotatedFile, target: Target
    ) -> None:
        file.write(b"a line of its own\n")
        file.write(b"next\n")
        assert self.texts(target)["mlxd.log.1"] == "a line of its own\n"

    def test_one_that_somebody_moves_or_removes_is_begun_anew(
        self, file: RotatedFile, target: Target
    ) -> None:
        """As logrotate and newsyslog do, which need tell nobody."""
        file.write(b"one\n")
        target.path.rename(target.path.with_name("moved"))
        file.write(b"two\n")
        target.path.unlink()
        file.write(b"three\n")
        assert self.texts(target) == {"mlxd.log": "three\n", "moved": "one\n"}

    def test_one_that_somebody_copies_and_cuts_off_begins_as_a_file_does(
        self, target: Target
    ) -> None:
        """logrotate's copytruncate: without its beginning nobody could read a traffic log."""
        file = RotatedFile(target, lambda: b"1st\n")
        file.write(b"one\n")
        os.truncate(target.path, 0)
        file.write(b"two\n")
        file.close()
        assert self.texts(target) == {"mlxd.log": "1st\ntwo\n"}

    def test_what_is_no_file_is_refused_and_nobody_waits_for_it(
        self, file: RotatedFile, target: Target
    ) -> None:
        target.path.parent.mkdir()
        os.mkfifo(target.path)
        with pytest.raises(OSError):  # noqa: PT011 - which one depends on the system
            file.write(b"one\n")


def test_lines_are_written_in_their_order_and_the_last_one_too(
    made: Callable[..., LogFile],
) -> None:
    file = made()
    for number in range(100):
        file.handle(record(f"{number}"))
    file.close()
    folder = file.target.path.parent
    parts = [folder / "mlxd.log.1", folder / "mlxd.log"]
    text = "".join(part.read_text() for part in parts if part.exists())
    assert text.split() == [str(number) for number in range(100)]
    assert (file.lost, file.failure) == (0, "")


def test_what_a_full_disk_does_not_take_goes_to_stderr(
    tmp_path: Path, made: Callable[..., LogFile], pipe: tuple[int, int]
) -> None:
    (tmp_path / "no folder").touch()
    file = made(tmp_path / "no folder" / "mlxd.log")
    file.handle(record("one"))
    file.handle(record("two"))
    file.close()
    first, *lines = os.read(pipe[0], 65536).decode().splitlines()
    assert "mlxd.log cannot be written: " in first
    assert lines == ["one", "two"]
    assert "cannot be written" in file.failure


def test_without_a_thread_for_it_lines_go_to_stderr_until_there_is_one(
    made: Callable[..., LogFile], pipe: tuple[int, int]
) -> None:
    with no_threads():
        file = made()
        file.handle(record("one"))
        assert "cannot be written: the system has no thread for it" in file.failure
    file.handle(record("two"))
    file.close()
    assert os.read(pipe[0], 65536).decode().splitlines()[1:] == ["one"]
    assert file.target.path.read_text() == "two\n"
    assert (file.lost, file.failure) == (0, "")


def test_a_disk_that_hangs_holds_nobody_up_and_its_lines_are_counted(
    made: Callable[..., LogFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = threading.Event()
    really = RotatedFile.write

    def write(file: RotatedFile, line: bytes) -> None:
        assert hangs.wait(60)
        really(file, line)

    monkeypatch.setattr(RotatedFile, "write", write)
    monkeypatch.setattr(log_file, "MOST_WAITING", 5)
    file = made()
    file.follow(Target(file.target.path, 10**6, 2))
    for number in range(20):
        file.handle(record(f"{number}"))
    assert 14 <= file.lost <= 15
    assert file.failure.endswith("its disk hangs")
    hangs.set()
    until(lambda: file.failure == "")
    until(lambda: file._waiting.waiting() == 0)
    file.handle(record("again"))
    file.close()
    *_, told, last = file.target.path.read_text().splitlines()
    assert told == f"{file.lost} log lines were lost"
    assert last == "again"


class TestConfigured:
    @pytest.fixture(autouse=True)
    def root(self) -> Iterator[logging.Logger]:
        """As it is in a process of its own."""
        root, ours = logging.getLogger(), logging.getLogger("mlxd")
        kept = [*root.handlers], root.level, ours.level
        root.handlers[:] = []
        yield root
        for handler in root.handlers:
            handler.close()
        root.handlers[:] = kept[0]
        root.setLevel(kept[1])
        ours.setLevel(kept[2])

    def test_the_log_moves_as_policy_says(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipe: tuple[int, int]
    ) -> None:
        monkeypatch.setattr(logs, "_descriptor", lambda: pipe[1])
        log = logging.getLogger("mlxd.x")
        first, second = (Target(tmp_path / name, 1000, 1) for name in ("a", "b"))
        logs.configure("info", "text", first)
        log.info("to a")
        logs.configure("info", "text", Target(first.path, 5000, 1))
        logs.configure("info", "text", second)
        log.info("to b")
        logs.configure("info", "text")
        log.info("to stderr")
        until(lambda: second.path.exists() and "goes to stderr" in second.path.read_text())
        until(lambda: first.path.exists() and "goes to" in first.path.read_text())
        words = [line.split("info")[1].strip() for line in first.path.read_text().splitlines()]
        assert words == ["to a", f"the log goes to {second.path}"]
        words = [line.split("info")[1].strip() for line in second.path.read_text().splitlines()]
        assert words == ["to b", "the log goes to stderr"]
        said = os.read(pipe[0], 65536).decode()
        assert [line.split("info")[1].strip() for line in said.splitlines()] == [
            f"the log goes to {first.path}", f"the log goes to {second.path}", "to stderr",
        ]  # fmt: skip
        assert (logs.lost(), logs.warnings()) == (0, [])

    def test_what_earlier_files_lost_stays_counted(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipe: tuple[int, int]
    ) -> None:
        monkeypatch.setattr(logs, "_descriptor", lambda: pipe[1])
        first, second = (Target(tmp_path / name, 1000, 1) for name in ("a", "b"))
        logs.configure("info", "text", first)
        file = logs._file()
        assert file is not None
        file.lost += 3  # as where its disk hangs
        for target in (first, second, None, first):
            logs.configure("info", "text", target)
            assert logs.lost() == 3

    def test_a_file_that_cannot_be_written_is_told(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipe: tuple[int, int]
    ) -> None:
        monkeypatch.setattr(logs, "_descriptor", lambda: pipe[1])
        logs.configure("info", "text", Target(tmp_path, 1000, 1))
        logging.getLogger("mlxd.x").info("to a folder")
        until(lambda: len(logs.warnings()) == 1)
