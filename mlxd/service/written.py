"""The files of a service that `mlxd service install` wrote: they alone are replaced or removed."""

from __future__ import annotations

import contextlib
import os
from enum import Enum
from pathlib import Path

_MARK = "Written by mlxd service install"
_REST = "the next one replaces it, mlxd service uninstall removes it."
_HEAD_BYTES = 1024
_ELSEWHERE = ("/homebrew/", "/Cellar/", "/linuxbrew/", "homebrew.mxcl")


class Found(Enum):
    """What is there already, beside what would be written."""

    NOTHING = "nothing"
    SAME = "same"
    OLDER = "older"
    """Ours, with other contents."""
    FOREIGN = "foreign"
    """Somebody else's, or a link to somewhere."""


def marked(content: str) -> str:
    """With a comment that says whose it is. XML wants its own line to be the first."""
    if content.startswith("<?xml"):
        declaration, _, rest = content.partition("\n")
        return f"{declaration}\n<!-- {_MARK}: {_REST} -->\n{rest}"
    return f"# {_MARK}: {_REST}\n{content}"


def found(file: Path, content: str | None = None) -> Found:
    """Raises OSError, for a file that cannot be read."""
    if file.is_symlink():
        return Found.FOREIGN
    try:
        present = file.read_bytes()
    except FileNotFoundError:
        return Found.NOTHING
    if _MARK.encode() not in present[:_HEAD_BYTES]:
        return Found.FOREIGN
    return Found.SAME if content is not None and present == content.encode() else Found.OLDER


def is_homebrews(text: str) -> bool:
    """Whether a path or the contents of a file look like Homebrew's."""
    return any(word in text for word in _ELSEWHERE)


def refusal(file: Path) -> str:
    """Why a foreign file is left alone."""
    try:
        brewed = is_homebrews(file.read_text(errors="replace")) or is_homebrews(str(file.resolve()))
    except OSError:
        brewed = False
    if brewed:
        return f"{file} is Homebrew's: see `brew services`, such as `brew services stop mlxd`"
    return f"{file} was not written by `mlxd service install`: move it away first"


def write(file: Path, content: str) -> None:
    """Whole or not at all; readable for all, as managers want it. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        temporary.write_text(content, encoding="utf-8")
        temporary.chmod(0o644)
        temporary.replace(file)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
