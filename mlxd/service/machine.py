"""The machine that a service is put on, and the only place that runs its programs."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mlxd.core import places
from mlxd.service.layout import Layout

_QUERY_SECONDS = 30.0
_STEP_SECONDS = 0.2
_LINE_BYTES = 1024


class ServiceError(Exception):
    """It cannot be done; the message says why, and what to do."""


class CommandFailed(ServiceError):
    """A program ended with a status that nobody expected."""

    def __init__(self, done: Done, hint: str = "") -> None:
        said = done.said or f"it ended with status {done.status}"
        super().__init__(f"{shlex.join(done.command)}: {said}" + (f"\n{hint}" if hint else ""))
        self.done = done


@dataclass(frozen=True, slots=True)
class Machine:
    """What is asked of it. Tests give one of their own."""

    platform: str
    environ: Mapping[str, str]
    uid: int
    home: Path
    root: Path = Path("/")
    """Where /etc and /Library are."""
    prefix: Path = Path(sys.prefix)
    """Of the environment that mlxd is installed in."""

    @classmethod
    def here(cls) -> Machine:
        home = places.home_of(os.environ) or Path("/")
        return cls(sys.platform, os.environ, os.geteuid(), home)

    def program(self, name: str) -> str:
        """Its absolute path. Raises ServiceError."""
        found = shutil.which(name, path=self.environ.get("PATH", os.defpath))
        if found is None:
            raise ServiceError(f"there is no program {name} on PATH")
        return os.path.abspath(found)  # noqa: PTH100  # as it is named, not where a link leads


@dataclass(frozen=True, slots=True)
class Done:
    """A program that has ended."""

    command: tuple[str, ...]
    status: int
    out: str = ""
    err: str = ""

    @property
    def said(self) -> str:
        return (self.err.strip() or self.out.strip()).replace("\n", "; ")


@dataclass(frozen=True, slots=True)
class Commands:
    """Runs programs. What changes something is shown first, and in a rehearsal only shown."""

    machine: Machine
    show: Callable[[str], None]
    rehearsal: bool = False
    patience: float = 120.0
    """Seconds for a command that changes something: a stop may let requests finish."""
    sleep: Callable[[float], None] = field(default=time.sleep)

    def ask(self, name: str, *arguments: str) -> Done:
        """Run what changes nothing. Raises ServiceError."""
        return self._run((self.machine.program(name), *arguments), _QUERY_SECONDS)

    def do(self, name: str, *arguments: str, accept: Collection[int] = (), hint: str = "") -> Done:
        """Show it, run it. Raises CommandFailed for a status above 0 that is not in `accept`."""
        command = (self.machine.program(name), *arguments)
        self.show(shlex.join(command))
        if self.rehearsal:
            return Done(command, 0)
        done = self._run(command, self.patience)
        if done.status != 0 and done.status not in accept:
            raise CommandFailed(done, hint)
        return done

    def wait_until(self, true: Callable[[], bool], seconds: float) -> bool:
        """Whether it has become true in that time; a rehearsal does not wait."""
        for _ in range(max(1, round(seconds / _STEP_SECONDS))):
            if self.rehearsal or true():
                return True
            self.sleep(_STEP_SECONDS)
        return true()

    def _run(self, command: tuple[str, ...], seconds: float) -> Done:
        try:
            done = subprocess.run(
                command,
                check=False,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=seconds,
                env={**self.machine.environ, "LC_ALL": "C"},
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ServiceError(f"{shlex.join(command)}: {error}") from error
        return Done(command, done.returncode, done.stdout, done.stderr)


def within_a_home(layout: Layout) -> Path | None:
    """What the program needs and another user could not read: itself, where it leads, its Python.

    None: nothing.
    """
    program = Path(layout.program)
    needed = (program, Path(os.path.realpath(program)), _interpreter(program))
    return next((path for path in needed if _is_in_a_home(path)), None)


def _is_in_a_home(path: Path) -> bool:
    parts = path.parts[1:]
    return (
        parts[:1] in {("home",), ("root",)}
        or parts[:2] == ("run", "user")
        or (parts[:1] == ("Users",) and parts[1:2] != ("Shared",))
    )


def _interpreter(program: Path) -> Path:
    """Of a script, as its first line has it, and where that leads; else the program itself."""
    try:
        with program.open("rb") as file:
            first = file.readline(_LINE_BYTES)
    except OSError:
        return program
    words = first.removeprefix(b"#!").split()
    if not first.startswith(b"#!") or not words:
        return program
    return Path(os.path.realpath(os.fsdecode(words[0])))
