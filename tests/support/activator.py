"""Starts a program as systemd starts the service of a socket unit: listeners from file 3 on.

    python activator.py FILES NAMES PROGRAM ...

FILES are the numbers of open files, with commas; NAMES are theirs, with colons.
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Sequence

_FIRST = 3
_FAR = 100


def prefix(files: Sequence[int], names: str) -> list[str]:
    """For `daemon(prefix=..., pass_fds=files)`."""
    return [sys.executable, __file__, ",".join(map(str, files)), names]


def main(files: str, names: str, program: list[str]) -> None:
    """Does not return."""
    aside = [fcntl.fcntl(int(file), fcntl.F_DUPFD_CLOEXEC, _FAR) for file in files.split(",")]
    for number, file in enumerate(aside, start=_FIRST):
        os.dup2(file, number)
    os.environ["LISTEN_PID"] = str(os.getpid())
    os.environ["LISTEN_FDS"] = str(len(aside))
    os.environ["LISTEN_FDNAMES"] = names
    os.execv(program[0], program)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
