"""Writing a generation's files back into the policy folder: all of them, whenever it is killed.

What is to be written is first noted in the state folder; a start that finds the note finishes it,
unless somebody has edited one of the files since.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from mlxd.core import aside, durable
from mlxd.policy.history import History

_NOTE = "writing.json"
_VERSION = 1
_MOST_BYTES = 32 << 20

Contents = Mapping[str, bytes | None]
"""By file name; None: there is no such file."""


class WriteBack:
    """Files that are to be written into `folder`, verbatim; None removes one.

    `seen` is what the caller found there: what was saved since is not overwritten.
    """

    def __init__(
        self, history: History, folder: Path, seen: Mapping[str, bytes], contents: Contents
    ) -> None:
        self._seen = seen
        self._note = history.folder / _NOTE
        self._folder = folder
        self._contents = contents
        self._before: Contents = {}

    def write(self) -> None:
        """All of them. Raises OSError, and then all is as before."""
        self._before = _present(self._folder, self._contents)
        if any(self._before[name] != self._seen.get(name) for name in self._contents):
            raise OSError(errno.EBUSY, "a file was edited meanwhile")
        try:
            self._replace(self._before, self._contents)
        except OSError:
            self.undo()
            raise

    def undo(self) -> None:
        """Put back what was there; what cannot be is left."""
        with contextlib.suppress(OSError):
            self._replace(self._contents, self._before)

    def _replace(self, old: Contents, new: Contents) -> None:
        """The note stays behind only if this process is killed. Raises OSError."""
        durable.put(self._note, _encoded(self._folder, old, new))
        try:
            _write_all(self._folder, new)
        finally:
            self._note.unlink(missing_ok=True)


def finish(history: History) -> None:
    """Go on with what a killed daemon had begun to write; what cannot be written is left."""
    note = history.folder / _NOTE
    work = aside.read(note, _VERSION, _work, most=_MOST_BYTES)
    if work is None:
        return
    folder, old, new = work
    with contextlib.suppress(OSError):
        present = _present(folder, new)
        if all(present[name] in (old[name], new[name]) for name in new):
            _write_all(folder, new)
    with contextlib.suppress(OSError):
        note.unlink(missing_ok=True)


def _work(content: bytes) -> tuple[Path, Contents, Contents]:
    """The folder, what was there, what is to be. Raises one of `aside.STRANGE`."""
    said = json.loads(content)
    aside.check_version(said["version"], _VERSION)
    old, new = _decoded(said["old"]), _decoded(said["new"])
    if old.keys() != new.keys():
        raise ValueError("it speaks of different files")
    return Path(said["folder"]), old, new


def _present(folder: Path, names: Contents) -> Contents:
    """Raises OSError."""
    found: dict[str, bytes | None] = dict.fromkeys(names)
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            found[name] = _bytes_of(folder / name)
    return found


def _bytes_of(file: Path) -> bytes:
    """Raises OSError, also for what is no file."""
    try:
        return durable.read(file, _MOST_BYTES)
    except ValueError as error:
        raise OSError(errno.EINVAL, str(error)) from error


def _encoded(folder: Path, old: Contents, new: Contents) -> bytes:
    """Files that are not UTF-8 may have to be put back too: their bytes travel as surrogates."""
    said = {"version": _VERSION, "folder": str(folder)}
    texts = {
        kind: {
            name: raw.decode("utf-8", "surrogateescape") if raw is not None else None
            for name, raw in contents.items()
        }
        for kind, contents in (("old", old), ("new", new))
    }
    return json.dumps(said | texts).encode()


def _decoded(texts: Mapping[str, str | None]) -> Contents:
    return {
        name: text.encode("utf-8", "surrogateescape") if text is not None else None
        for name, text in texts.items()
    }


def _write_all(folder: Path, contents: Contents) -> None:
    """All that is new lies beside its file before the first is replaced: a full disk changes none.

    Through links, and with the owner and mode that a file has. Raises OSError.
    """
    with contextlib.ExitStack() as left:
        ready: list[tuple[Path, Path]] = []
        for name, raw in contents.items():
            if raw is not None:
                file = (folder / name).resolve()
                left.callback(_beside(file).unlink, missing_ok=True)
                _write(_beside(file), raw, file)
                ready.append((_beside(file), file))
        for temporary, file in ready:
            temporary.replace(file)
    for name, raw in contents.items():
        if raw is None:
            (folder / name).unlink(missing_ok=True)
    for changed in {folder, *(file.parent for _, file in ready)}:
        with contextlib.suppress(OSError):  # not every file system can
            durable.sync_folder(changed)


def _beside(file: Path) -> Path:
    """Always the same, so that one which a kill has left is replaced."""
    return file.with_name(f".{file.name}.new")


def _write(temporary: Path, raw: bytes, file: Path) -> None:
    """What is to take the place of `file`."""
    temporary.unlink(missing_ok=True)  # a killed writer's, or a pipe that would be waited for
    with temporary.open("xb") as stream:
        stream.write(raw)
        stream.flush()
        os.fsync(stream.fileno())
    with contextlib.suppress(FileNotFoundError):
        had = file.stat()
        shutil.copymode(file, temporary)
        with contextlib.suppress(PermissionError):
            os.chown(temporary, had.st_uid, had.st_gid)
