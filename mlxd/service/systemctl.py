"""The service as systemd has it: the machine's, or one user's."""

from __future__ import annotations

import re
import signal
from collections.abc import Collection, Mapping
from pathlib import Path

from mlxd.service.layout import UNIT
from mlxd.service.machine import Commands, Done, ServiceError
from mlxd.service.manager import State
from mlxd.service.render import Scope

SERVICE = f"{UNIT}.service"
SOCKET = f"{UNIT}.socket"
OPTIONAL = "optional"
"""A folder of drop-ins that no installation takes by itself."""

_PROPERTIES = (
    "LoadState", "UnitFileState", "ActiveState", "SubState", "MainPID", "StateChangeTimestamp",
    "ExecMainCode", "ExecMainStatus", "FragmentPath",
)  # fmt: skip
_KILLED = ("2", "3")
"""CLD_KILLED and CLD_DUMPED."""
_NO_BUS = re.compile(r"Failed to connect to (?:user scope )?bus|DBUS_SESSION_BUS_ADDRESS")
_NOT_BOOTED = "not been booted with systemd"
_VERSION = re.compile(r"^systemd (\d+)")


class Systemctl:
    name = "systemd"
    names: tuple[str, ...] = (SERVICE, SOCKET)

    def __init__(self, commands: Commands, scope: Scope) -> None:
        self._commands = commands
        self._scope = scope
        self._flag = ("--user",) if scope == "user" else ()

    def state(self) -> State:
        asked = ("show", "--timestamp=unix", f"--property={','.join(_PROPERTIES)}", SERVICE)
        done = self._commands.ask("systemctl", *self._flag, *asked)
        if done.status != 0:
            raise ServiceError(_explained(done, self._commands.machine.uid))
        said = dict(line.partition("=")[::2] for line in done.out.splitlines())
        return _state(said)

    def wanted(self, name: str) -> bool:
        """A drop-in `254.conf` is for versions from there on; `optional/` is for an operator."""
        folder, _, file = name.rpartition("/")
        number = file.removesuffix(".conf")
        if number.isdecimal():
            return self._version() >= int(number)
        return folder != OPTIONAL

    def retire(self, names: Collection[str]) -> None:
        """A socket that stays would be handed to the next daemon, and hold its port."""
        self._do("disable", "--now", *names)

    def put(self, files: Collection[Path], changed: Collection[Path], *, now: bool) -> list[str]:
        before = self.state()
        if changed:
            self._do("daemon-reload")
        units = _units(any(file.name == SOCKET for file in files))
        if not before.enabled or changed:
            self._do("enable", *units)
        if not now:
            return [self._later()] if changed and before.running else []
        if before.running and changed:
            rebound = any(file.name == SOCKET for file in changed)
            self._do("restart", *(units if rebound else (SERVICE,)))
        elif not before.running:
            self._do("start", *units)
        return []

    def end(self) -> None:
        if self.state().loaded:
            self._do("disable", "--now", *_units(self._has_socket()))

    def forget(self) -> None:
        self._do("daemon-reload")

    def _later(self) -> str:
        command = " ".join(("systemctl", *self._flag, "restart", UNIT))
        return f"the running one goes on as it was started, until: {command}"

    def _has_socket(self) -> bool:
        asked = ("show", "--property=LoadState", "--value", SOCKET)
        return self._commands.ask("systemctl", *self._flag, *asked).out.strip() == "loaded"

    def _version(self) -> int:
        found = _VERSION.match(self._commands.ask("systemctl", "--version").out)
        return int(found[1]) if found else 0

    def _do(self, verb: str, *units: str) -> None:
        level = " ".join(self._flag)
        hint = f"see: journalctl {level} -u {UNIT} -n 20".replace("  ", " ")
        self._commands.do(
            "systemctl", *self._flag, verb, *units,
            hint=hint if verb in {"start", "restart"} else "",
        )  # fmt: skip


def _units(socket: bool) -> tuple[str, ...]:
    """The socket first: it may pass a connection on at once."""
    return (SOCKET, SERVICE) if socket else (SERVICE,)


def _state(said: Mapping[str, str]) -> State:
    at = said.get("StateChangeTimestamp", "").removeprefix("@")
    activity = f"{said.get('ActiveState', 'unknown')} ({said.get('SubState', 'unknown')})"
    return State(
        loaded=said.get("LoadState") == "loaded",
        enabled=said.get("UnitFileState", "").startswith("enabled"),
        activity=activity,
        pid=int(said.get("MainPID") or 0),
        since=float(at) if at.isdecimal() and int(at) > 0 else None,
        last_exit=_exit(said.get("ExecMainCode", "0"), said.get("ExecMainStatus", "0")),
        file=said.get("FragmentPath", ""),
    )


def _exit(code: str, status: str) -> str:
    if code in {"", "0"}:
        return ""
    if code in _KILLED and status.isdecimal():
        try:
            return signal.Signals(int(status)).name
        except ValueError:
            return f"signal {status}"
    return f"exit {status}"


def _explained(done: Done, uid: int) -> str:
    if _NOT_BOOTED in done.said:
        return "systemd does not run this machine: start `mlxd serve` by what does"
    if _NO_BUS.search(done.said):
        return (
            f"no systemd of user {uid} can be reached ({done.said}): log in as that user, not by"
            " su or sudo, or have it run always: loginctl enable-linger USER"
        )
    return done.said or f"systemctl ended with status {done.status}"
