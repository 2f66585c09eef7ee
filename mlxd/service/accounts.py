"""The user that a service of the machine runs as, and the folders that belong to it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from mlxd.service.layout import Layout
from mlxd.service.machine import Commands, ServiceError
from mlxd.service.render import Files

_ROLES = range(400, 199, -1)
"""Ids that macOS leaves to services."""
_USER = re.compile(r"^User=(\S+)", re.MULTILINE)
_DYNAMIC = re.compile(r"^DynamicUser=(?:yes|true|on|1)$", re.MULTILINE)


def user_of_units(files: Files) -> str:
    """Whom systemd would look for; empty: nobody, or it makes one up."""
    text = "\n".join(files.values())
    found = _USER.search(text)
    return found[1] if found is not None and not _DYNAMIC.search(text) else ""


def add_on_linux(commands: Commands, user: str) -> None:
    if not _there(commands, user):
        commands.do("systemd-sysusers", "--inline", f'u {user} - "mlxd" -')


def add_on_mac(commands: Commands, user: str) -> None:
    """A user that nobody logs in as, and a group of the same name."""
    if _there(commands, user):
        return
    number = str(_free(commands))
    group, account = f"/Groups/{user}", f"/Users/{user}"
    _create(commands, group, "PrimaryGroupID", number)
    for key, value in (
        ("UniqueID", number),
        ("PrimaryGroupID", number),
        ("UserShell", "/usr/bin/false"),
        ("NFSHomeDirectory", "/var/empty"),
        ("RealName", "mlxd"),
        ("Password", "*"),
        ("IsHidden", "1"),
    ):
        _create(commands, account, key, value)


def add_folders(commands: Commands, layout: Layout) -> None:
    """Those that launchd and the daemon need to be there. Policies are root's: they are read."""
    if not _is_there(commands, layout.policies):
        commands.do("install", "-d", "-m", "0755", str(layout.policies))
    owned = ("install", "-d", "-o", layout.user, "-g", layout.user, "-m")
    for folder, mode in ((layout.state, "0700"), (layout.logs, "0750"), (layout.models, "0755")):
        if not _is_there(commands, folder):
            commands.do(*owned, mode, str(folder))


def _is_there(commands: Commands, folder: PurePosixPath | None) -> bool:
    """True as well where there need be none."""
    return folder is None or (commands.machine.root / str(folder).lstrip("/")).is_dir()


def _create(commands: Commands, record: str, key: str, value: str) -> None:
    commands.do("dscl", ".", "-create", record, key, value)


def _there(commands: Commands, user: str) -> bool:
    return commands.ask("id", "-u", user).status == 0


def _free(commands: Commands) -> int:
    """An id that no user and no group has."""
    taken = set(_numbers(commands, "/Users", "UniqueID"))
    taken |= set(_numbers(commands, "/Groups", "PrimaryGroupID"))
    for number in _ROLES:
        if number not in taken:
            return number
    raise ServiceError(f"no id is free from {_ROLES[-1]} to {_ROLES[0]}")


def _numbers(commands: Commands, where: str, key: str) -> Iterable[int]:
    for line in commands.ask("dscl", ".", "-list", where, key).out.splitlines():
        number = line.split()[-1] if line.split() else ""
        if number.lstrip("-").isdecimal():
            yield int(number)
