"""Whether what runs is what is installed: an upgrade replaces the files under a running daemon."""

from __future__ import annotations

import sys
from pathlib import Path

import mlxd

_GONE = (
    "mlxd's files have been removed since this daemon started, which starts its workers from "
    "them; restart the daemon"
)
_ANEW = (
    "mlxd has been installed anew since this daemon started, which starts its workers from the "
    "new files; restart the daemon"
)


class Installed:
    """The package and the interpreter of this process, as they were when it began."""

    def __init__(
        self, package: Path = Path(mlxd.__file__), interpreter: Path = Path(sys.executable)
    ) -> None:
        self._package = package
        self._interpreter = interpreter
        self._began = _mark(package)

    def change(self) -> str:
        """What has become of them and what to do, for people; empty: nothing. May block."""
        if self._began is None:
            return ""
        now = _mark(self._package)
        if now is None or _mark(self._interpreter) is None:
            return _GONE
        return _ANEW if now != self._began else ""


def _mark(file: Path) -> tuple[int, int] | None:
    """Another one for another file of that name; None: there is none. No inode is in it: there are
    file systems that number a file anew.
    """
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
