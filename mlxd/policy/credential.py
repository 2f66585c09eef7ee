"""What a policy refers to and never holds: a credential of the service manager, or a file."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

_CREDENTIAL = "credential:"
_FOLDER = "CREDENTIALS_DIRECTORY"
"""Set by systemd (`LoadCredential=`); whoever else starts mlxd may set it too."""
_MOST_BYTES = 64 * 1024


class Unreadable(Exception):
    """It cannot be had now. The message names no path and quotes nothing."""


def read(reference: str, environ: Mapping[str, str] | None = None) -> str:
    """The text behind `credential:NAME` or an absolute path, without the line's end after it.

    May block. Raises Unreadable, also for one that is empty.
    """
    try:
        file = file_of(reference, environ)
        with open(file, "rb", opener=_opened) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise Unreadable("it is no regular file")
            found = stream.read(_MOST_BYTES + 1)
        text = found.decode().rstrip("\r\n")
    except OSError as error:
        raise Unreadable(error.strerror or "it cannot be read") from None
    except UnicodeDecodeError:
        raise Unreadable("it is no text") from None
    if not text or len(found) > _MOST_BYTES:
        raise Unreadable("it is empty" if not text else "it is too long")
    return text


def _opened(path: str, flags: int) -> int:
    """Without waiting for somebody at the other end of a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


def is_credential(reference: str) -> bool:
    """Whether a service manager hands it over: nobody else writes it."""
    return reference.startswith(_CREDENTIAL)


def file_of(reference: str, environ: Mapping[str, str] | None = None) -> Path:
    """Where it is. Raises Unreadable."""
    if not is_credential(reference):
        return Path(reference)
    folder = (os.environ if environ is None else environ).get(_FOLDER, "")
    if not folder:
        raise Unreadable(f"{_FOLDER} is not set: no service manager has handed credentials over")
    return Path(folder) / reference.removeprefix(_CREDENTIAL)
