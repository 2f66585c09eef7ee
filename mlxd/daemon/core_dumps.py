"""What a crash leaves of this process's memory, and of its children's: by policy, nothing. A core
holds what was said to models, and what they answered.
"""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path

from mlxd.policy.policy_set import PolicySet

_FILTER = Path("/proc/self/coredump_filter")
"""Which memory a core has. A program that the kernel pipes cores to is not bound by any limit."""
_NOTHING = "0"


class CoreDumps:
    """Follows `supervision.daemon.core_dumps`. Children inherit what holds as they start."""

    def __init__(self) -> None:
        self._before, _ = resource.getrlimit(resource.RLIMIT_CORE)
        self._filter = _read()

    def apply(self, policies: PolicySet) -> None:
        allowed = policies.supervision.daemon.core_dumps
        _, hard = resource.getrlimit(resource.RLIMIT_CORE)
        with contextlib.suppress(ValueError, OSError):  # somebody has lowered the hard limit
            resource.setrlimit(resource.RLIMIT_CORE, (self._before if allowed else 0, hard))
        _write(self._filter if allowed else _NOTHING)


def _read() -> str:
    """Empty: this system has none."""
    try:
        return f"0x{_FILTER.read_text().strip()}"
    except OSError:
        return ""


def _write(wanted: str) -> None:
    with contextlib.suppress(OSError):
        if wanted and _FILTER.exists():
            _FILTER.write_text(wanted)
