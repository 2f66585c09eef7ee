"""Says what a process in the sandbox can do; runs there in the daemon's place, as a script."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import mmap
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

_CLONE_NEWUSER = 0x10000000
_PER_LINUX32 = 8
_CAPABILITIES = ("CapEff", "CapPrm", "CapBnd", "CapAmb")
_ELSEWHERE = ("192.0.2.1", 9)
"""An address that is nobody's (RFC 5737)."""


def outcome(act: Callable[[], object]) -> str:
    """`done`, or the name of the error."""
    try:
        act()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "done"


def sent_to(address: tuple[str, int]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"x", address)


def opened(family: int, kind: int = socket.SOCK_STREAM) -> None:
    socket.socket(family, kind).close()


def writable_code() -> None:
    mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


def called(name: str, argument: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(argument) == -1:
        raise OSError(ctypes.get_errno(), name)


def marked(file: Path) -> None:
    file.touch()
    file.chmod(0o4700)


def status_of(pid: int | str) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]


def readable(path: str) -> str:
    found = Path(path)
    return outcome(lambda: [*found.iterdir()] if found.is_dir() else found.read_bytes())


def writable(path: str) -> str:
    def write() -> None:
        file = Path(path) / ".probe"
        file.write_bytes(b"x")
        file.unlink()

    return outcome(write)


def seen() -> dict[str, object]:
    own = status_of("self")
    uid = own["Uid"].split()[0]
    credential = Path(os.environ["CREDENTIALS_DIRECTORY"]) / "api-keys"
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listening:
        local = outcome(lambda: socket.create_connection(listening.getsockname(), 5).close())
    return {
        "uid": int(uid),
        "privileges": {name: int(own[name], 16) for name in _CAPABILITIES},
        "no_new_privileges": own["NoNewPrivs"],
        "umask": own["Umask"],
        "read": {path: readable(path) for path in sys.argv[2].split(":")},
        "write": {path: writable(path) for path in sys.argv[3].split(":")},
        "credential": credential.read_text(),
        "setuid": outcome(lambda: os.setuid(0)),
        "namespace": outcome(lambda: called("unshare", _CLONE_NEWUSER)),
        "personality": outcome(lambda: called("personality", _PER_LINUX32)),
        "priority": outcome(lambda: os.nice(1)),
        "set_user_id": outcome(lambda: marked(Path(sys.argv[1]).with_name("marked"))),
        "writable_code": outcome(writable_code),
        "netlink": outcome(lambda: opened(socket.AF_NETLINK, socket.SOCK_RAW)),
        "packet": outcome(lambda: opened(socket.AF_PACKET, socket.SOCK_RAW)),
        "to_itself": local,
        "to_others": outcome(lambda: sent_to(_ELSEWHERE)),
        "devices": [device.name for device in Path("/dev").iterdir()],
        "others": [pid for pid in processes() if status_of(pid)["Uid"].split()[0] != uid],
    }


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(seen()))
