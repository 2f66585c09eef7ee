import contextlib
import logging
import os
import select
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mlxd.telemetry.sink import Sink


def record(message, *arguments):
    return logging.LogRecord("mlxd.x", logging.INFO, "f", 1, message, arguments, None)


@pytest.fixture
def pipe():
    read, write = os.pipe()
    yield read, write
    for one in (read, write):
        with contextlib.suppress(OSError):
            os.close(one)


def read_all(descriptor):
    os.set_blocking(descriptor, False)
    found = b""
    while True:
        try:
            piece = os.read(descriptor, 65536)
        except BlockingIOError:
            return found.decode()
        found += piece


def test_a_record_is_a_line(pipe):
    read, write = pipe
    Sink(write).emit(record("hello %s", "you"))
    assert read_all(read) == "hello you\n"


def within(seconds, work):
    """Fails where `work` waits for somebody."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "it waits"


def test_a_pipe_that_nobody_reads_holds_nobody_up_and_its_lines_are_counted(pipe):
    read, write = pipe
    sink = Sink(write)

    def flood():
        for _ in range(1000):
            sink.emit(record("x" * 1000))

    within(20, flood)
    assert 800 < sink.lost < 1000
    read_all(read)
    sink.emit(record("again"))
    *_, told, last = read_all(read).splitlines()
    assert told == f"{sink.lost} log lines were lost"
    assert last == "again"


def test_no_more_is_written_at_once_than_a_pipe_takes_that_is_ready(pipe, monkeypatch):
    """On macOS that is less: a longer piece would wait for whoever reads nothing."""
    monkeypatch.setattr(select, "PIPE_BUF", 512)
    read, write = pipe
    pieces = []
    real = os.write

    def noted(descriptor, data):
        pieces.append(len(data))
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", noted)
    Sink(write).emit(record("x" * 2000))
    monkeypatch.undo()
    assert read_all(read) == f"{'x' * 2000}\n"
    assert max(pieces) <= 512


def test_a_line_that_was_torn_does_not_take_the_next_one_with_it(pipe):
    read, write = pipe
    sink = Sink(write)
    sink.emit(record("y" * 200_000))
    assert sink.lost == 1
    text = read_all(read)
    sink.emit(record("next"))
    lines = (text + read_all(read)).splitlines()
    assert lines[1:] == ["1 log line was lost", "next"]


def test_a_full_disk_and_a_closed_descriptor_are_no_error():
    full = os.open("/dev/full", os.O_WRONLY) if Path("/dev/full").exists() else -1
    sink = Sink(full)
    sink.emit(record("x"))
    if full >= 0:
        os.close(full)
    sink.emit(record("y"))
    assert sink.lost == 2


def test_a_reader_that_has_left_is_no_error(pipe):
    read, write = pipe
    os.close(read)
    sink = Sink(write)
    sink.emit(record("x"))
    assert sink.lost == 1


def test_a_log_call_that_is_wrong_is_still_a_line(pipe):
    read, write = pipe
    Sink(write).emit(record("%d", "no number"))
    assert "cannot be written" in read_all(read)


def test_what_is_opened_later_gets_no_number_of_a_standard_stream():
    code = (
        "import os\n"
        "from mlxd.telemetry.sink import hold_standard_streams\n"
        "for n in (0, 2): os.close(n)\n"
        "hold_standard_streams()\n"
        "print(os.open('/dev/null', os.O_RDONLY) > 2)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert ran.stdout == b"True\n"
