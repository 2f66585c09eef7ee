"""Writing a generation's files back into the policy folder: all of them, whenever it is killed.

What is to be written is first noted in the state folder; a start that finds the note finishes it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from mlxd.policy.history import History, write_whole

_NOTE = "writing.json"
_VERSION = 1


class WriteBack:
    """Files that are to be written into `folder`, verbatim; None removes one."""

    def __init__(
        self, history: History, folder: Path, contents: Mapping[str, bytes | None]
    ) -> None:
        self._note = history.folder / _NOTE
        self._folder = folder
        self._contents = contents
        self._before: dict[str, bytes | None] = {}

    def write(self) -> None:
        """All of them. Raises OSError, and then all is as before."""
        self._before = {name: _present(self._folder / name) for name in self._contents}
        self._note.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(self._note, _encoded(self._folder, self._contents))
        try:
            _write_all(self._folder, self._contents)
        except OSError:
            self.undo()
            raise
        finally:
            self._note.unlink(missing_ok=True)

    def undo(self) -> None:
        """Put back what was there; what cannot be is left."""
        with contextlib.suppress(OSError):
            _write_all(self._folder, self._before)


def finish(history: History) -> None:
    """Go on with what a killed daemon had begun to write; what cannot be written is left."""
    note = history.folder / _NOTE
    try:
        said = json.loads(note.read_bytes())
        if said["version"] == _VERSION:
            contents = {name: None if text is None else text.encode("utf-8", "surrogatepass")
                        for name, text in said["files"].items()}  # fmt: skip
            _write_all(Path(said["folder"]), contents)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    with contextlib.suppress(OSError):
        note.unlink(missing_ok=True)


def _present(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None


def _encoded(folder: Path, contents: Mapping[str, bytes | None]) -> bytes:
    files = {name: None if raw is None else raw.decode() for name, raw in contents.items()}
    said = {"version": _VERSION, "folder": str(folder), "files": files}
    return json.dumps(said).encode()


def _write_all(folder: Path, contents: Mapping[str, bytes | None]) -> None:
    for name, raw in contents.items():
        if raw is None:
            (folder / name).unlink(missing_ok=True)
        else:
            _write(folder / name, raw)


def _write(file: Path, raw: bytes) -> None:
    """Whole or not at all; through a link, and with the owner and mode that the file has."""
    file = file.resolve()
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        temporary.write_bytes(raw)
        with contextlib.suppress(FileNotFoundError):
            had = file.stat()
            shutil.copymode(file, temporary)
            with contextlib.suppress(PermissionError):
                os.chown(temporary, had.st_uid, had.st_gid)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
