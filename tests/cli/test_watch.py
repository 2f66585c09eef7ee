"""`mlxd status --watch` and `mlxd logs`, against a running daemon."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from mlxd.cli.logs import _last, _next
from mlxd.cli.watch import styled, watch
from tests.integration.talking import eventually
from tests.support.command import mlxd
from tests.support.daemon import Daemon

Captured = pytest.CaptureFixture[str]


def test_to_a_pipe_it_is_one_block_after_another(shared_daemon: Daemon, capsys: Captured) -> None:
    assert watch(None, str(shared_daemon.state), rounds=2) == 0
    blocks = capsys.readouterr().out.strip().split("\n\n")
    assert len(blocks) == 2
    for block in blocks:
        assert re.search(r"^mlxd \S+  \w+  http://", block)
        assert re.search(r"^event +\d\d:\d\d:\d\d  ", block, re.MULTILINE)


def test_without_a_daemon_it_says_so_and_goes_on(tmp_path: Path, capsys: Captured) -> None:
    assert watch(None, str(tmp_path), rounds=2) == 0
    assert capsys.readouterr().out.count("mlxd is not running") == 2


def test_on_a_terminal_it_stays_in_its_place_until_it_is_ended(shared_daemon: Daemon) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "mlxd", "status", "--watch", "--state"]
    running = subprocess.Popen(
        [*command, str(shared_daemon.state)], stdin=theirs, stdout=theirs, stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"},
    )  # fmt: skip
    os.close(theirs)
    said = b""
    deadline = time.monotonic() + 30
    while said.count(b"requests") < 2 and time.monotonic() < deadline:
        said += os.read(ours, 1 << 16)
    running.send_signal(signal.SIGINT)
    while running.poll() is None:
        try:
            said += os.read(ours, 1 << 16)
        except OSError:  # the other side is closed
            break
    os.close(ours)
    assert running.wait(10) == 0
    assert said.count(b"requests") >= 2
    assert said.count(b"\x1b[?1049h") == said.count(b"\x1b[?1049l") == 1, "a screen of its own"
    assert b"Traceback" not in said


def test_words_that_come_from_elsewhere_are_no_markup() -> None:
    block = styled(iter(["mlxd 0  ok", "event     [bold]x[/] \x1b"]), "ok")
    assert "[bold]x[/]" in block.plain


def test_where_the_log_is_and_its_last_lines(shared_daemon: Daemon) -> None:
    """This one's is its stderr: somebody else keeps it."""
    done = mlxd("logs", "--state", shared_daemon.state)
    assert (done.returncode, done.stdout) == (1, "")
    assert "stderr" in done.stderr


def test_a_log_of_its_own_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    from mlxd.cli import logs

    file = tmp_path / "mlxd.log"
    file.write_text("".join(f"line {n}\n" for n in range(100)) + "\x1b[31mred\n")
    monkeypatch.setattr(logs, "health_of", lambda _: {"log": str(file)})
    assert logs.logs(None, None, 3, path_only=True, follow=False) == 0
    assert capsys.readouterr().out == f"{file}\n"
    assert logs.logs(None, None, 3, path_only=False, follow=False) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == ["line 98", "line 99"]
    assert "\x1b" not in said[2]
    file.unlink()
    assert logs.logs(None, None, 3, path_only=False, follow=False) == 1
    assert "mlxd.log" in capsys.readouterr().err


def test_the_last_lines_of_a_large_log_are_read_from_its_end(tmp_path: Path) -> None:
    file = tmp_path / "mlxd.log"
    file.write_bytes(b"".join(b"%08d %s\n" % (n, b"x" * 100) for n in range(5000)))
    lines, end = _last(file, 2000)
    assert [line[:8] for line in lines] == [f"{n:08d}" for n in range(3000, 5000)]
    assert end == file.stat().st_size
    assert len(_last(file, 10_000)[0]) == 5000


def test_lines_are_followed_into_the_next_file(tmp_path: Path) -> None:
    """And none is lost, or cut, whenever it comes."""
    file = tmp_path / "mlxd.log"
    file.write_text("before\nhal")
    found: list[str] = []
    before, end = _last(file, 10)
    with file.open("a") as stream:
        stream.write("f\nbetween\nthe beginning of ")

    def follow(lines: Generator[str, None, None]) -> None:
        with contextlib.closing(lines):
            for line in lines:
                found.append(line)
                if line == "last":
                    return

    def shown(line: str) -> None:
        eventually(lambda: line in found, f"{line!r} is shown")

    thread = threading.Thread(target=follow, args=(_next(file, end),), daemon=True)
    thread.start()
    shown("between")
    with file.open("a") as stream:
        stream.write("one\n")
    shown("the beginning of one")
    file.write_text("anew\n")
    shown("anew")
    file.rename(tmp_path / "mlxd.log.1")
    file.write_text("two\nlast\n")
    thread.join(30)
    assert not thread.is_alive()
    assert before == ["before"]
    assert found == ["half", "between", "the beginning of one", "anew", "two", "last"]


# -- mlxd logs --worker


@pytest.mark.mlx
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc to speak for a worker by")
def test_what_a_running_worker_has_said_is_shown(shared_daemon: Daemon) -> None:
    shared_daemon.admin.wait("/admin/load", {"model": "tiny-a"})
    worker = shared_daemon.admin.get("/admin/models/stderr", name="tiny-a")
    with Path(f"/proc/{worker['pid']}/fd/2").open("w") as stderr:
        stderr.write("one\ntwo \x1b[31m\nthree\n")
    where = ("--state", shared_daemon.state)

    def said() -> str:
        return mlxd("logs", "--worker", "tiny-a", "-n", "2", *where).stdout

    deadline = time.monotonic() + 10
    while "three" not in said():
        assert time.monotonic() < deadline
    assert said() == "two \\x1b[31m\nthree\n"


@pytest.mark.mlx
def test_without_a_worker_it_is_said_where_else_to_look(shared_daemon: Daemon) -> None:
    where = ("--state", shared_daemon.state)
    assert mlxd("unload", "tiny-b", *where).returncode == 0
    done = mlxd("logs", "--worker", "tiny-b", *where)
    assert done.returncode == 1
    assert "tiny-b has no worker now; what the last one said: mlxd crashes" in done.stderr
    done = mlxd("logs", "--worker", "no-such", *where)
    assert done.returncode == 1
    assert "no-such" in done.stderr
