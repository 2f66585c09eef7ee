"""Commands find a daemon whatever becomes of its state folder, and only one."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from mlxd.core.claim import AlreadyRunning, Claim
from mlxd.core.clock import SystemClock
from mlxd.core.instance import ADDRESS, LOCK, PID, pid_of, running
from mlxd.core.threads import Threads
from mlxd.daemon.presence import Presence
from mlxd.policy.load import load
from mlxd.policy.store import PolicyStore
from mlxd.server.admin_socket import AdminSocket
from mlxd.server.connections import GuardedServer


class Found:
    """A daemon, as far as commands look for it."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.warnings: list[str] = []
        self.claim = Claim(state)
        self.claim.take()
        server = GuardedServer(_answer, PolicyStore(load()), SystemClock(), limited=False)
        self.admin = AdminSocket(server, state)
        self.presence = Presence(self.claim, self.admin, Threads("state"), self.warnings)

    async def start(self) -> None:
        self.presence.bind()
        await self.presence.announce("127.0.0.1", 41499)
        self.admin.serve()

    async def answers(self) -> bool:
        """Both, by the state folder: whose it is, and its admin socket."""
        found = running(self.state)
        if found is None or found.port != 41499 or pid_of(self.state) != os.getpid():
            return False
        reader, writer = await asyncio.open_unix_connection(found.admin)
        writer.write(b"GET / HTTP/1.1\r\nHost: admin\r\n\r\n")
        said = await reader.read(4096)
        writer.close()
        return b"200 OK" in said


async def _answer(_: web.BaseRequest) -> web.StreamResponse:
    return web.Response(text="admin")


@pytest.fixture
async def found(tmp_path: Path) -> AsyncIterator[Found]:
    made = Found(tmp_path / "state")
    yield made
    await made.admin.close()
    made.claim.release()


@pytest.mark.parametrize("gone", [LOCK, PID, ADDRESS, "admin.sock"])
async def test_what_is_removed_comes_back(
    found: Found, gone: str, caplog: pytest.LogCaptureFixture
) -> None:
    await found.start()
    (found.state / gone).unlink()
    for _ in range(3):
        await found.presence.look()
    assert await found.answers()
    assert caplog.text.count("made anew") == 1
    with pytest.raises(AlreadyRunning):
        Claim(found.state).take()


async def test_so_does_the_whole_folder(found: Found, caplog: pytest.LogCaptureFixture) -> None:
    await found.start()
    shutil.rmtree(found.state)
    for _ in range(3):
        await found.presence.look()
    assert await found.answers()
    assert [line.split(":")[0] for line in caplog.messages] == [
        f"mlxd.lock, mlxd.pid or daemon.json is gone from {found.state}",
        "the admin socket is made anew",
    ]
    with pytest.raises(AlreadyRunning):
        Claim(found.state).take()
    await found.admin.close()
    found.claim.release()
    assert [file.name for file in found.state.iterdir()] == [LOCK]


async def test_what_is_there_is_left_alone(found: Found, caplog: pytest.LogCaptureFixture) -> None:
    await found.start()
    before = {file.name: file.stat().st_mtime_ns for file in found.state.iterdir()}
    await found.presence.look()
    assert {file.name: file.stat().st_mtime_ns for file in found.state.iterdir()} == before
    assert caplog.messages == []


async def test_a_folder_that_another_has_claimed_meanwhile_is_the_others(
    found: Found, caplog: pytest.LogCaptureFixture
) -> None:
    """Until that one leaves it."""
    await found.start()
    shutil.rmtree(found.state)
    other = Claim(found.state)
    other.take()
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(found.state / "admin.sock"))
    (found.state / PID).write_text("7\n")
    for _ in range(3):
        await found.presence.look()
    assert pid_of(found.state) == 7
    assert caplog.text.count("is gone from") == 1
    assert caplog.text.count("another mlxd runs with this state folder (pid 7)") == 1
    found.claim.release()
    await found.admin.close()
    assert (found.state / PID).exists()
    assert (found.state / "admin.sock").exists()
    sock.close()
    other.release()


async def test_one_that_leaves_it_again_is_followed(found: Found) -> None:
    await found.start()
    shutil.rmtree(found.state)
    other = Claim(found.state)
    other.take()
    await found.presence.look()
    other.release()
    await found.presence.look()
    assert await found.answers()


async def test_an_admin_socket_that_cannot_be_bound_is_tried_again(
    found: Found, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    real = found.admin.bind

    def refuse() -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(found.admin, "bind", refuse)
    await found.start()
    for _ in range(3):
        await found.presence.look()
    assert found.warnings == [f"no admin socket at {found.admin.path}: Permission denied"]
    monkeypatch.setattr(found.admin, "bind", real)
    await found.presence.look()
    assert found.warnings == []
    assert await found.answers()


async def test_an_address_that_a_disk_did_not_take_is_told_later(
    found: Found, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await found.start()
    real = found.claim.announce

    def full(_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(found.claim, "announce", full)
    await found.presence.announce("127.0.0.1", 41498)
    await found.presence.look()
    assert caplog.text.count("the state folder cannot be written: [Errno 28]") == 1
    monkeypatch.setattr(found.claim, "announce", real)
    await found.presence.look()
    address = running(found.state)
    assert address is not None
    assert address.port == 41498
