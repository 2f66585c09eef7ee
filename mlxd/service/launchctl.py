"""The service as launchd has it: an agent of one user, or a daemon of the machine."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import psutil

from mlxd.service.launchd import FILE
from mlxd.service.layout import LABEL
from mlxd.service.machine import Commands, ServiceError
from mlxd.service.manager import State
from mlxd.service.render import Scope

_STILL_REGISTERED = 5
"""EIO: what `bootstrap` says of a label that launchd still has, and of much else."""
_GOING = frozenset({3, 36, 37, 113})
"""What `bootout` says of a label that is gone already, or on its way."""
_LINE = re.compile(r"^\t([a-z ]+) = (.+)$", re.MULTILINE)
"""One level deep in what `print` writes."""
_HINT = (
    "launchd says this of a label that it has not let go of yet, of a file that is not root's or"
    " that others may write (launchd daemons), and of an agent for a login that is not there."
    " Look: launchctl print {target}; then: launchctl bootout {target}"
)


class Launchctl:
    name = "launchd"
    names: tuple[str, ...] = (FILE,)

    def __init__(self, commands: Commands, scope: Scope, file: Path) -> None:
        self._commands = commands
        self._scope = scope
        self._file = file

    def state(self) -> State:
        """Of the first of its domains that has the label."""
        return self._look()[1]

    def wanted(self, name: str) -> bool:
        return True

    def retire(self, names: Collection[str]) -> None:
        """It has one file, which is always of use."""

    def put(self, files: Collection[Path], changed: Collection[Path], *, now: bool) -> list[str]:
        domain, before = self._look()
        target = f"{domain}/{LABEL}"
        if not self._is_enabled(domain):
            self._commands.do("launchctl", "enable", target)
        if not now:
            again = f"launchctl bootout {target}; launchctl bootstrap {domain} '{self._file}'"
            words = f"the running one goes on as it was started, until: {again}"
            return [words] if changed and before.running else []
        if before.loaded and changed:
            self._bootout(target)
        if changed or not before.loaded:
            self._bootstrap(domain, target)
        elif not before.running:
            self._commands.do("launchctl", "kickstart", target)
        return []

    def end(self) -> None:
        domain, before = self._look()
        if before.loaded:
            self._bootout(f"{domain}/{LABEL}")

    def forget(self) -> None:
        """launchd has no list of files."""

    def _look(self) -> tuple[str, State]:
        """The domain that has the label, else the one to put it in."""
        for domain in self._domains():
            done = self._commands.ask("launchctl", "print", f"{domain}/{LABEL}")
            if done.status == 0:
                state = _state(done.out)
                return domain, replace(state, enabled=self._is_enabled(domain))
        domain = self._domain()
        there = self._file.exists()
        return domain, State(enabled=there and self._is_enabled(domain))

    def _domains(self) -> tuple[str, ...]:
        uid = self._commands.machine.uid
        return ("system",) if self._scope == "system" else (f"gui/{uid}", f"user/{uid}")

    def _domain(self) -> str:
        """Without a login at the screen there is no gui/UID; the last one is always there."""
        *first, last = self._domains()
        for domain in first:
            if self._commands.ask("launchctl", "print", domain).status == 0:
                return domain
        return last

    def _is_enabled(self, domain: str) -> bool:
        done = self._commands.ask("launchctl", "print-disabled", domain)
        return re.search(rf'"{re.escape(LABEL)}" => (?:disabled|true)', done.out) is None

    def _bootstrap(self, domain: str, target: str) -> None:
        arguments = ("launchctl", "bootstrap", domain, str(self._file))
        done = self._commands.do(*arguments, accept=(_STILL_REGISTERED,))
        if done.status != _STILL_REGISTERED:
            return
        self._commands.show(f"# {done.said or 'errno 5'}: {target} may still be registered; again")
        self._bootout(target)
        self._commands.do(*arguments, hint=_HINT.format(target=target))

    def _bootout(self, target: str) -> None:
        """It returns before the service has ended; until then the label is taken."""
        self._commands.do("launchctl", "bootout", target, accept=_GOING)
        if not self._commands.wait_until(lambda: self._is_gone(target), self._commands.patience):
            raise ServiceError(
                f"launchd still has {target} after {self._commands.patience:g} s;"
                f" look: launchctl print {target}"
            )

    def _is_gone(self, target: str) -> bool:
        return self._commands.ask("launchctl", "print", target).status != 0


def _state(text: str) -> State:
    said: dict[str, str] = dict(_LINE.findall(text))
    pid = int(said["pid"]) if said.get("pid", "").isdecimal() else 0
    return State(
        loaded=True,
        activity=said.get("state", "unknown"),
        pid=pid,
        since=_started(pid),
        last_exit=_exit(said),
        file=said.get("path", ""),
    )


def _exit(said: dict[str, str]) -> str:
    if killed := said.get("last terminating signal"):
        return killed
    code = said.get("last exit code", "")
    return f"exit {code}" if code[:1].isdecimal() else ""


def _started(pid: int) -> float | None:
    """launchd does not say."""
    if pid <= 0:
        return None
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None
