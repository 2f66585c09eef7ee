"""The machine: versions, limits, memory, the clock, and variables that lead elsewhere."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import psutil

from mlxd.cli.doctor.finding import Findings, advice, problem
from mlxd.cli.models.words import size
from mlxd.control.memory import read_memory
from mlxd.core import versions
from mlxd.core.clock import SystemClock

FEW_FILES = 10240
"""What launchd lets a service of ours have; a thousand clients need it."""
_PINNED = ("mlx", "mlx-lm")
_BACKENDS = ("mlx-cpu", "mlx-cuda-12", "mlx-cuda-13")
_DAY = 86400.0
_PROXIES = ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")
_LOCAL = ("127.0.0.1", "localhost", "*")
_UNLIMITED = resource.RLIM_INFINITY


def _sysctl(name: str) -> int:
    """Of macOS; 0 where it has none of this name."""
    try:
        said = subprocess.run(
            ["/usr/sbin/sysctl", "-n", name],
            check=False, capture_output=True, text=True, timeout=5,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return int(said.stdout) if said.stdout.strip().isdecimal() else 0


def _wanted() -> dict[str, str]:
    """The versions of the engine that this mlxd was made for."""
    try:
        lines = requires("mlxd") or []
    except PackageNotFoundError:
        return {}
    return dict(re.findall(r"^(mlx|mlx-lm)==([\w.]+)$", "\n".join(lines), re.MULTILINE))


@dataclass(frozen=True)
class System:
    """What is asked of the machine; tests give another."""

    platform: str = sys.platform
    sysctl: Callable[[str], int] = _sysctl
    limit: Callable[[int], tuple[int, int]] = resource.getrlimit
    installed: Mapping[str, str] = field(default_factory=versions.engine)
    wanted: Mapping[str, str] = field(default_factory=_wanted)
    now: Callable[[], float] = SystemClock().wall
    built: float = Path(__file__).stat().st_mtime
    """When this mlxd was installed, in seconds since the epoch."""
    root: Path = Path("/")
    """Where cgroups are found."""


def findings(system: System, environ: Mapping[str, str]) -> Findings:
    yield from _engine(system)
    yield from _limits(system)
    yield from _memory(system)
    yield from _clock(system)
    yield from _variables(environ)


def _engine(system: System) -> Findings:
    for package in _PINNED:
        found, wanted = system.installed.get(package, ""), system.wanted.get(package, "")
        if wanted and found != wanted:
            yield problem(
                "engine_version",
                f"{package} {found or 'is missing'}: this mlxd was made for {wanted}",
                "install mlxd anew, in an environment of its own",
            )
    if system.platform == "linux" and not any(one in system.installed for one in _BACKENDS):
        yield problem(
            "no_backend", "MLX has no backend here: on Linux that is an extra",
            "pip install 'mlxd[cpu]', or 'mlxd[cuda13]' for an NVIDIA GPU",
        )  # fmt: skip
    if system.platform == "darwin" and system.sysctl("sysctl.proc_translated") == 1:
        yield problem(
            "rosetta", "this Python is made for Intel and runs under Rosetta: MLX has no GPU there",
            "install a Python for Apple silicon, and mlxd with that",
        )  # fmt: skip


def _limits(system: System) -> Findings:
    _, hard = system.limit(resource.RLIMIT_NOFILE)
    if hard != _UNLIMITED and hard < FEW_FILES:
        yield problem(
            "few_files", f"no process here may have more than {hard} files open",
            f"raise the hard limit to {FEW_FILES}: LimitNOFILE= of the unit, /etc/security/"
            "limits.conf, or launchctl limit maxfiles",
        )  # fmt: skip
    for name, what in (("RLIMIT_AS", "address space (ulimit -v)"), ("RLIMIT_DATA", "data")):
        soft, _ = system.limit(getattr(resource, name))
        if soft != _UNLIMITED:
            yield problem(
                "memory_limit", f"processes here may have {size(soft)} of {what}: loads will fail",
                "lift it; memory.yaml bounds what models take, and refuses in words",
            )  # fmt: skip


def _memory(system: System) -> Findings:
    total = psutil.virtual_memory().total
    reading = read_memory(system.root)
    if reading is not None and reading.total < 0.99 * total:
        yield advice(
            "memory_of_group",
            f"this process may have {size(reading.total)} of the machine's {size(total)}",
            "models have to fit into that: MemoryMax= of the unit, or the container's limit",
        )
    if system.platform == "darwin":
        yield from _wired(system)


def _wired(system: System) -> Findings:
    limit, total = system.sysctl("iogpu.wired_limit_mb") << 20, system.sysctl("hw.memsize")
    if limit and total and limit > 0.9 * total:
        yield problem(
            "gpu_limit_high",
            f"iogpu.wired_limit_mb lets the GPU have {size(limit)} of {size(total)}: macOS itself"
            " may stand still",
            f"sudo sysctl iogpu.wired_limit_mb={int(0.85 * total) >> 20}",
        )
    elif limit and total and limit < 0.5 * total:
        yield advice(
            "gpu_limit_low",
            f"iogpu.wired_limit_mb leaves the GPU {size(limit)} of {size(total)}",
            "sudo sysctl iogpu.wired_limit_mb=0 is macOS' own choice, about three quarters",
        )


def _clock(system: System) -> Findings:
    late = system.built - system.now()
    if late > _DAY:
        yield problem(
            "clock_wrong",
            f"the clock says a time {late / _DAY:.0f} days before mlxd was installed: certificates"
            " fail, and daily quotas are wrong",
            "set it: sudo sntp -sS time.apple.com, or timedatectl set-ntp true",
        )


def _variables(environ: Mapping[str, str]) -> Findings:
    excepted = ",".join(environ.get(name, "") for name in ("no_proxy", "NO_PROXY")).split(",")
    proxy = next((name for name in _PROXIES if environ.get(name)), "")
    if proxy and not any(one.strip() in _LOCAL for one in excepted):
        yield advice(
            "proxy_catches_us",
            f"{proxy} is set: clients started from this shell ask the proxy for mlxd, too",
            "export NO_PROXY=localhost,127.0.0.1",
        )
