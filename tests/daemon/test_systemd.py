"""What systemd hears, on a socket of the test's."""

from __future__ import annotations

import os
import resource
import secrets
import socket
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from mlxd.daemon.systemd import Systemd


@contextmanager
def no_file_left() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            os.open(os.devnull, os.O_RDONLY)
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def listening(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(address)
    sock.settimeout(5)
    return sock


def test_it_hears_all_of_a_daemon_that_has_no_file_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "s")
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    with listening(path) as sock, closing(Systemd()) as systemd, no_file_left():
        systemd.alive()
        systemd.stopping(1.5)
        assert sock.recv(100) == b"WATCHDOG=1"
        assert sock.recv(100) == b"STOPPING=1\nEXTEND_TIMEOUT_USEC=1500000"


@pytest.mark.skipif(sys.platform != "linux", reason="abstract names: Linux")
def test_its_socket_may_have_an_abstract_name(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"mlxd-test-{secrets.token_hex(8)}"
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    with listening(f"\0{name}") as sock, closing(Systemd()) as systemd:
        systemd.ready("up")
        assert sock.recv(100) == b"READY=1\nSTATUS=up"


def test_a_status_may_have_any_letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "s")
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    with listening(path) as sock, closing(Systemd()) as systemd:
        systemd.ready("größer → 大")
        assert sock.recv(100).decode() == "READY=1\nSTATUS=größer → 大"


def test_a_status_is_one_line_and_forges_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "s")
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    with listening(path) as sock, closing(Systemd()) as systemd:
        systemd.status("bad\nWATCHDOG=1" + 5000 * "x")
        told = sock.recv(10_000)
        assert told.startswith(b"STATUS=bad\\nWATCHDOG=1x")
        assert len(told) < 2000
        systemd.failed("one\ntwo", 98)
        assert sock.recv(100) == b"ERRNO=98\nSTATUS=one; two"


def test_the_loop_does_not_wait_for_one_that_hears_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "s")
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    with listening(path), closing(Systemd()) as systemd:
        for _ in range(2000):
            systemd.alive()


def test_elsewhere_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    systemd = Systemd()
    systemd.ready("up")
    systemd.alive()
    systemd.close()
