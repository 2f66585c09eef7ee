"""The clocks of a daemon, moved from outside: it runs with a library that this compiles."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_name("clocks.c")


def missing() -> str:
    """Why it cannot be done here; empty if it can."""
    if sys.platform != "linux":
        return "only Linux preloads a library"
    return "" if _compiler() else "no C compiler is here"


class Clocks:
    """`environment` is for the daemon whose clocks these are."""

    def __init__(self, folder: Path) -> None:
        library = folder / "clocks.so"
        compiler = _compiler()
        assert compiler is not None
        command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE)]
        subprocess.run(command, check=True)
        self._file = folder / "clocks"
        self.set(wall=0, slept=0)
        self.environment = {"LD_PRELOAD": str(library), "TEST_CLOCKS": str(self._file)}

    def set(self, *, wall: float, slept: float) -> None:
        """Seconds that the wall clock is off, and that the machine has slept."""
        self._file.touch()
        with self._file.open("r+b") as file:
            file.write(struct.pack("=dd", wall, slept))


def _compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
