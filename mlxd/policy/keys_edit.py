"""Changes the file of API keys: whole or not at all, one change at a time."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mlxd.core import durable
from mlxd.policy.keyring import SCHEMA, Key, Keyring, iso, parse
from mlxd.policy.keys_file import KeysFile
from mlxd.policy.strict_yaml import MAX_BYTES

_HEAD = (
    "# API keys of mlxd: who has one, and a hash of it, never the key itself.\n"
    "# `mlxd keys` writes this file anew: comments are lost.\n"
    f"schema: {SCHEMA}\n"
)
_MOST_LINKS = 8
_PRIVATE = 0o600
_GROUP_READS = 0o040
LOCK_SECONDS = 10.0
_LOOK_SECONDS = 0.05


class NotEdited(Exception):
    """Why, in words."""


def edit(file: KeysFile, change: Callable[[Keyring], Keyring]) -> Keyring:
    """Have `change` make the next keys of the present ones. Returns those that are written.

    Raises NotEdited, KeysRefused for a file that is broken already, and what `change` raises.
    """
    if not file.writable:
        raise NotEdited(
            "clients.auth.keys_file is a credential, which only the service manager writes: change"
            " it there, or set clients.auth.keys_file: auto"
        )
    try:
        path = _real(Path(file.reference))
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _alone(path.parent):
            after = change(_read(path, file.name))
            owner, mode = _whose(path)
            durable.write(path, _encoded(after), owner=owner, mode=mode)
    except OSError as error:
        raise NotEdited(f"{file.reference} cannot be written: {error.strerror or error}") from error
    return after


def _real(path: Path) -> Path:
    """What is there in the end: links stay. Raises NotEdited, OSError.

    The folder may be the daemon's user's: root does not write wherever he has laid a link to.
    """
    at = path
    for _ in range(_MOST_LINKS):
        if not at.is_symlink():
            return Path(os.path.realpath(at))
        if os.geteuid() == 0 and at.lstat().st_uid != 0:
            raise NotEdited(f"{at} is a link that is not root's: root does not follow it")
        at = at.parent / at.readlink()
    raise NotEdited(f"{path} is a link that leads nowhere")


def _read(path: Path, name: str) -> Keyring:
    try:
        return parse(durable.read(path, MAX_BYTES), name)
    except FileNotFoundError:
        return Keyring()
    except ValueError as error:
        raise NotEdited(f"{path} cannot be used: {error}") from error


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """The folder itself is what is locked: nothing is left in it. Raises NotEdited, OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise NotEdited("another `mlxd keys` is at work") from None
                time.sleep(_LOOK_SECONDS)
        yield
    finally:
        os.close(descriptor)


def _whose(path: Path) -> tuple[tuple[int, int] | None, int]:
    """The user and group whose the file is to be, and its mode: as it was. Root writes it for the
    user whom the daemon runs as, and for whom a group may stand.
    """
    root = os.geteuid() == 0
    try:
        found = path.stat()
    except FileNotFoundError:
        folder = path.parent.stat()
        return ((folder.st_uid, folder.st_gid) if root else None), _PRIVATE
    mode = _PRIVATE | found.st_mode & _GROUP_READS
    if root:
        return (found.st_uid, found.st_gid), mode
    if found.st_gid in (os.getegid(), *os.getgroups()):
        return (-1, found.st_gid), mode
    return None, _PRIVATE


def _encoded(ring: Keyring) -> bytes:
    """Raises NotEdited."""
    listed = "".join(map(_entry, ring.keys))
    content = f"{_HEAD}keys:{chr(10) + listed if listed else ' []' + chr(10)}".encode()
    if len(content) > MAX_BYTES:
        most = MAX_BYTES // 1024
        raise NotEdited(f"there are too many keys for {most} KiB: remove old ones from the file")
    return content


def _entry(key: Key) -> str:
    fields = {
        "id": key.id,
        "tenant": key.tenant,
        "sha256": key.sha256,
        "created": iso(key.created),
        "note": key.note or None,
        "expires": None if key.expires is None else iso(key.expires),
        "revoked": None if key.revoked is None else iso(key.revoked),
        "rotated": None if key.rotated is None else iso(key.rotated),
    }
    lines = [
        f"{name}: {json.dumps(value, ensure_ascii=False)}\n"
        for name, value in fields.items()
        if value is not None
    ]
    return "  - " + "    ".join(lines)
