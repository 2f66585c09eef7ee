"""Bad networks. A proxy that treats each connection badly in its own way, for everybody; and a wire
between two network namespaces that loses packets, is slow, or is cut, for root on Linux.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import os
import random
import select
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

Treatment = Literal["fair", "cut", "reset", "deaf", "trickle", "throttle", "half"]
TREATMENTS: tuple[Treatment, ...] = (
    "fair", "cut", "reset", "deaf", "trickle", "throttle", "half",
)  # fmt: skip
_SMALL = 4096
_BEFORE = 2000
"""Bytes of an answer that pass before something happens."""


class Proxy:
    """In front of a port; connection n gets treatment n, in turn.

    fair: none. cut: closed in the middle of the answer. reset: the same with a RST. deaf: in the
    middle of the answer nothing is read any more. trickle: 100 bytes a second. throttle: 256 kbit
    a second. half: half of the request comes, then nothing.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._count = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._do(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _end(self) -> None:
        self._server.close()
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            # What they closed is closed in a later turn; what was accepted is served in one.
            await asyncio.sleep(0.05)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await self._mistreat(reader, writer)

    async def _mistreat(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        how = TREATMENTS[self._count % len(TREATMENTS)]
        self._count += 1
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL)
        sock.setblocking(False)
        await self._loop.sock_connect(sock, ("127.0.0.1", self._target))
        down, up = await asyncio.open_connection(sock=sock, limit=_SMALL)
        try:
            async with asyncio.TaskGroup() as both:
                upward = both.create_task(_upward(reader, up, how))
                both.create_task(_downward(down, writer, how, upward))
        except* (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            if how == "reset":
                linger = struct.pack("ii", 1, 0)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            for end in (up, writer):
                end.transport.abort() if how == "reset" else end.close()


async def _upward(reader, up, how: Treatment) -> None:
    while data := await reader.read(65536):
        if how == "half":
            up.write(data[: len(data) // 2])
            await asyncio.sleep(3600)
        up.write(data)
        await up.drain()


async def _downward(down, writer, how: Treatment, upward) -> None:
    passed = 0
    while data := await down.read(100 if how == "trickle" else _SMALL):
        writer.write(data)
        await writer.drain()
        passed += len(data)
        if passed > _BEFORE:
            match how:
                case "cut" | "reset":
                    break
                case "deaf":
                    await asyncio.sleep(3600)
                case "trickle":
                    await asyncio.sleep(1.0)
                case "throttle":
                    await asyncio.sleep(len(data) / 32_000)
                case _:
                    pass
    upward.cancel()


def no_wire() -> str:
    """Why there can be no `wire` here; empty if there can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "only root makes network namespaces and tunnels"
    if shutil.which("ip") is None:
        return "ip is not installed"
    if not os.path.exists("/dev/net/tun"):  # noqa: PTH110
        return "there is no /dev/net/tun"
    tried = subprocess.run(
        ["unshare", "-n", "ip", "tuntap", "add", "probe", "mode", "tun"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    return f"no tunnel can be made: {tried.stderr.strip()}" if tried.returncode else ""


@dataclass(slots=True)
class Wire:
    """From this machine, at `here`, into a namespace; what it does to packets may be changed."""

    here: str
    namespace: str
    loss: float = 0.0
    rate: float = float("inf")
    """Bytes a second, each way."""
    cut: bool = False
    """Packets vanish; nobody is told."""
    ended: threading.Event = field(default_factory=threading.Event)

    def socket(self) -> socket.socket:
        """A TCP socket of the other side."""
        made: list[socket.socket] = []

        def make() -> None:
            with open(f"/run/netns/{self.namespace}", "rb") as there:  # noqa: PTH123
                if ctypes.CDLL(None).setns(there.fileno(), 0):
                    raise OSError("setns")
            made.append(socket.socket())

        thread = threading.Thread(target=make)  # and with the thread its namespace ends
        thread.start()
        thread.join()
        return made[0]

    def carry(self, source: int, target: int) -> None:
        """Packets of one direction, until it ends."""
        chance = random.Random(source)
        while not self.ended.is_set():
            if not select.select([source], [], [], 0.1)[0]:
                continue
            packet = os.read(source, 65536)
            time.sleep(len(packet) / self.rate)
            if not self.cut and chance.random() >= self.loss:
                with contextlib.suppress(OSError):
                    os.write(target, packet)


@contextmanager
def wire() -> Iterator[Wire]:
    """Only where `no_wire` says nothing."""
    number = os.getpid() % 250
    name, device = f"mlxd-{os.getpid()}", f"mlxd{number}"
    here, there = f"10.231.{number}.1", f"10.231.{number}.2"
    _ip("netns", "add", name)
    ends: list[int] = []
    try:
        ends.append(_tunnel(f"{device}a"))
        ends.append(_tunnel(f"{device}b"))
        _ip("link", "set", f"{device}b", "netns", name)
        for prefix, suffix, address in (((), "a", here), (("-n", name), "b", there)):
            _ip(*prefix, "addr", "add", f"{address}/24", "dev", device + suffix)
            _ip(*prefix, "link", "set", device + suffix, "mtu", "1400", "up")
        made = Wire(here, name)
        threads = [
            threading.Thread(target=made.carry, args=pair, daemon=True)
            for pair in (tuple(ends), tuple(reversed(ends)))
        ]
        for thread in threads:
            thread.start()
        yield made
        made.ended.set()
        for thread in threads:
            thread.join()
    finally:
        for end in ends:
            os.close(end)
        _ip("netns", "del", name)


def _tunnel(name: str) -> int:
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    tunsetiff, tun, no_pi = 0x400454CA, 0x1, 0x1000
    fcntl.ioctl(end, tunsetiff, struct.pack("16sH22x", name.encode(), tun | no_pi))
    return end


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
