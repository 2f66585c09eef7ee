"""The real systemd, as the first process of namespaces of its own: units in it are run for real.

It has the host's files, in an overlay that goes with it, the host's network, and no units but those
that a test puts there. Only root can make one, on Linux, where overlays and cgroups can be mounted.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import psutil

import mlxd

_SECONDS = 60.0
_BOOT = Path(__file__).with_name("systemd_boot.sh")
_PROGRAMS = ("unshare", "nsenter", "setpriv", "systemctl", "pivot_root", "mount")
_GROUP = "mlxd-test-"
_PR_SET_PDEATHSIG = 1
_UNITS = "etc/systemd/system"
_TARGET = "[Unit]\nDescription={name}\nDefaultDependencies=no\n"
_TARGETS = ("idle", "sysinit", "basic", "sockets", "network", "multi-user", "shutdown")
"""What units of services refer to, without what a machine starts for them."""
PROGRAM = "usr/bin/mlxd"
"""Where the rendered units have it; below the machine's root."""
_LIBRARIES = "LD_LIBRARY_PATH=/opt/mlxd/python/lib"
UNIT_LOG = "var/log/unit.log"
"""What units say, if a drop-in tells them to: there is no journal."""
T = TypeVar("T")


class Unavailable(Exception):
    """There can be no machine here; the message says why."""


def eventually(found: Callable[[], T | None], what: str) -> T:
    """Ask until it says something."""
    deadline = time.monotonic() + _SECONDS
    while not (seen := found()):
        assert time.monotonic() < deadline, f"not within {_SECONDS:g} s: {what}"
        time.sleep(0.02)
    return seen


@dataclass(frozen=True, slots=True)
class Machine:
    """A running systemd."""

    pid: int
    log: Path
    cgroup: Path
    """The root of its hierarchy, as the host sees it."""

    @property
    def interpreter(self) -> str:
        """A command inside."""
        return f"/usr/bin/env {_LIBRARIES} {_interpreter()}"

    @property
    def root(self) -> Path:
        """Its files, as the host sees them."""
        return Path(f"/proc/{self.pid}/root")

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """As root of the machine."""
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--uts", "--ipc"]
        return subprocess.run(
            [*enter, *command], capture_output=True, text=True, timeout=2 * _SECONDS, check=False,
            env={"PATH": "/usr/bin:/bin", "SYSTEMD_PAGER": "", "LC_ALL": "C"},
        )  # fmt: skip

    def systemctl(self, *words: str) -> str:
        """What must succeed."""
        done = self.run("systemctl", *words)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}\n{self.told()}"
        return done.stdout

    def told(self) -> str:
        """How the units are, and their last words."""
        unit = self.root / UNIT_LOG
        states = self.run("systemctl", "status", "*.service", "*.socket").stdout
        return states + (unit.read_text()[-3000:] if unit.exists() else "")

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        said = self.systemctl("show", unit, *(f"--property={name}" for name in properties))
        return dict(line.split("=", 1) for line in said.splitlines())

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """A file of the machine, whole at once."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.new")
        temporary.write_text(text)
        temporary.chmod(mode)
        temporary.replace(file)

    def install(self, files: Mapping[str, str]) -> None:
        """Units and drop-ins by their names; empty ones are removed."""
        for name, text in files.items():
            if text:
                self.write(f"{_UNITS}/{name}", text)
            else:
                (self.root / _UNITS / name).unlink(missing_ok=True)
        self.systemctl("daemon-reload")

    def processes(self, unit: str) -> list[int]:
        """Of the unit's cgroup, by their ids on the host."""
        found: list[int] = []
        for file in self.cgroup.glob(f"system.slice/{unit}/**/cgroup.procs"):
            with contextlib.suppress(OSError):
                found += map(int, file.read_text().split())
        return found

    def host_pid(self, unit: str) -> int:
        """Of its main process."""
        inside = self.show(unit, "MainPID")["MainPID"]
        for pid in self.processes(unit):
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{pid}/status").read_text()
                if f"\nNSpid:\t{pid}\t{inside}\n" in status:
                    return pid
        return 0


@contextmanager
def machine(folder: Path) -> Iterator[Machine]:
    """Boot one below `folder`. Raises Unavailable."""
    _possible()
    cgroup = _own_cgroup()
    log = folder / "systemd.log"
    try:
        _prepare(folder)
        with log.open("wb") as sink:
            process = subprocess.Popen(
                _command(folder), stdin=subprocess.DEVNULL, stdout=sink, stderr=sink,
                preexec_fn=partial(_enter, cgroup),  # noqa: PLW1509
            )  # fmt: skip
        try:
            yield _booted(process, log, cgroup)
        finally:
            process.kill()
            process.wait()
    finally:
        _remove(cgroup)


def _possible() -> None:
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        raise Unavailable("only root of a Linux can start systemd in a namespace")
    if not Path("/lib/systemd/systemd").exists():
        raise Unavailable("there is no systemd here")
    if missing := [name for name in _PROGRAMS if shutil.which(name) is None]:
        raise Unavailable(f"there is no {', '.join(missing)} here")
    if Path("/usr").stat().st_dev != Path("/").stat().st_dev:
        raise Unavailable("/usr is a file system of its own, which an overlay over / does not show")


def _own_cgroup() -> Path:
    """One that systemd may divide; nobody else is in it."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.startswith("cgroup2 "):
            top = Path(before.split(" ")[4])
            _tidy(top)
            folder = top / f"{_GROUP}{os.getpid()}"
            try:
                folder.mkdir()
            except OSError as error:
                raise Unavailable(f"no cgroup can be made: {error}") from None
            return folder
    raise Unavailable("no cgroup hierarchy of version 2 is mounted")


def _tidy(top: Path) -> None:
    """Remove what runs have left that were killed."""
    for folder in top.glob(f"{_GROUP}*"):
        if not psutil.pid_exists(int(folder.name.removeprefix(_GROUP))):
            _remove(folder)


def _prepare(folder: Path) -> None:
    for name in ("layers", "root", f"files/{_UNITS}", "files/usr/bin"):
        (folder / name).mkdir(parents=True)
    for name in _TARGETS:
        unit = folder / f"files/{_UNITS}/{name}.target"
        unit.write_text(_TARGET.format(name=name))
    program = folder / "files" / PROGRAM
    program.write_text(
        "#!/bin/sh\n"
        "export PYTHONPATH=/opt/mlxd/library:/opt/mlxd/site PYTHONDONTWRITEBYTECODE=1\n"
        f"export {_LIBRARIES}\n"
        f'exec {_interpreter()} -P -m mlxd "$@"\n'
    )
    program.chmod(0o755)


def _interpreter() -> str:
    """Inside."""
    prefix = "/opt/mlxd/python" if _hidden_python() else sys.base_prefix
    return f"{prefix}/bin/python{sys.version_info.major}.{sys.version_info.minor}"


def _hidden_python() -> str:
    """The prefix of an interpreter that lies in a home, which the sandbox hides; else empty."""
    prefix = Path(sys.base_prefix).resolve()
    homes = ("/home", "/root", "/run/user")
    return str(prefix) if any(prefix.is_relative_to(home) for home in homes) else ""


def _command(folder: Path) -> list[str]:
    return [
        *("unshare", "--mount", "--pid", "--cgroup", "--uts", "--ipc", "--fork"),
        *("--propagation=private", "--kill-child=SIGKILL", "/bin/sh", str(_BOOT), str(folder)),
        *(str(Path(mlxd.__file__).parents[1]), sysconfig.get_path("purelib"), _hidden_python()),
    ]


def _booted(process: subprocess.Popen[bytes], log: Path, cgroup: Path) -> Machine:
    """Raises Unavailable where a namespace or a mount is refused."""
    found = eventually(lambda: _first_of(process), "a process in the namespaces")
    running = Machine(found, log, cgroup)

    def up() -> bool:
        if process.poll() is not None:
            raise Unavailable(f"systemd did not start here: {log.read_text()[-500:]}")
        state = running.run("systemctl", "is-system-running").stdout.strip()
        return state in ("running", "degraded")

    try:
        eventually(up, "systemd runs")
    except AssertionError:
        raise AssertionError(f"systemd does not come up:\n{log.read_text()}") from None
    return running


def _first_of(process: subprocess.Popen[bytes]) -> int:
    """The pid of the first process in the namespaces, once it is systemd; 0: not yet, or never."""
    if process.poll() is not None:
        return -1
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(process.pid).children():
            if child.name() == "systemd":
                return int(child.pid)
    return 0


def _enter(cgroup: Path) -> None:
    """In the new process: it is of the group, and does not outlive the tests."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    (cgroup / "cgroup.procs").write_text("0")


def _remove(cgroup: Path) -> None:
    """With all that systemd has made in it, once its processes are gone."""

    def gone() -> bool:
        for folder in sorted(cgroup.rglob("*/"), reverse=True):
            with contextlib.suppress(OSError):
                folder.rmdir()
        with contextlib.suppress(OSError):
            cgroup.rmdir()
        return not cgroup.exists()

    eventually(gone, "the cgroup is empty")
