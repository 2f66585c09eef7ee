"""Where the daemon's log goes, by policy and by who has started it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlxd.core import places
from mlxd.policy.policy_set import PolicySet
from mlxd.telemetry import logs
from mlxd.telemetry.log_file import Target

_NAME = "mlxd.log"


@dataclass(frozen=True, slots=True)
class Log:
    """Follows `server.log`."""

    folder: Path | None = None
    """For a file where policy leaves that to mlxd; None: stderr."""

    def apply(self, policies: PolicySet) -> None:
        log = policies.server.log
        path = self._path(log.file)
        target = Target(path, int(log.rotate.size), log.rotate.keep) if path is not None else None
        logs.configure(log.level, log.format, target)

    def _path(self, file: str) -> Path | None:
        if file == "auto":
            return self.folder / _NAME if self.folder is not None else None
        return None if file == "none" else places.expanded(file)
