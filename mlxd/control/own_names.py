"""Names that clients gave to models: what /api/copy and /api/create make, and the short name of a
pull.

One small file each in `<state>/models.d/`; one that this version does not read is set aside.
"""

from __future__ import annotations

import contextlib
import errno
import json
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import msgspec

from mlxd.core import aside, durable
from mlxd.core.models import canonical
from mlxd.core.preset import Preset

SCHEMA = 2
_PLAIN_SCHEMA = 1
"""Of a name without a preset: an older mlxd reads it, too."""
MOST_NAMES = 1000
"""Every client that lists the models is told all of them."""
MOST_BYTES = 2**18
"""Of one, as it is written."""
MOST_BYTES_IN_ALL = 2**25
"""They are held in memory."""


@dataclass(frozen=True, slots=True)
class OwnName:
    """One more name for a model."""

    name: str
    """As the client wrote it."""
    model: str
    """The catalogue's name of what it stands for; never another own name."""
    made_by: Literal["copy", "pull", "create"]
    preset: Preset | None = None


class OwnNames:
    """All of them, and what is on the disk. The daemon alone writes there.

    `put` and `remove` wait for the disk, and may be called in any thread.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._changing = threading.Lock()
        self._names: Mapping[str, OwnName] = {canonical(o.name): o for o in _read_all(folder)}

    def __call__(self) -> Mapping[str, OwnName]:
        """By canonical names. What it returned does not change."""
        return self._names

    def get(self, name: str) -> OwnName | None:
        return self._names.get(canonical(name))

    def of(self, model: str) -> list[OwnName]:
        """All that stand for one model."""
        wanted = canonical(model)
        return [one for one in self._names.values() if canonical(one.model) == wanted]

    def put(self, own: OwnName) -> None:
        """Add it, in place of one that is called the same. Raises OSError."""
        key = canonical(own.name)
        said = _encoded(own)
        with self._changing:
            self._check_room(key, said)
            durable.put(self._path(own.name), said)
            self._names = {**self._names, key: own}

    def _check_room(self, key: str, said: bytes) -> None:
        """Raises OSError."""
        if len(self._names) >= MOST_NAMES and key not in self._names:
            raise OSError(errno.EDQUOT, f"there are {MOST_NAMES} such names already")
        if len(said) > MOST_BYTES:
            raise OSError(errno.EFBIG, f"what it says has more than {MOST_BYTES} bytes")
        others = (one for name, one in self._names.items() if name != key and one.preset)
        if len(said) + sum(len(_encoded(one)) for one in others) > MOST_BYTES_IN_ALL:
            words = f"what created models say has more than {MOST_BYTES_IN_ALL} bytes in all"
            raise OSError(errno.EDQUOT, words)

    def remove(self, own: OwnName) -> None:
        """Raises OSError."""
        key = canonical(own.name)
        with self._changing:
            self._path(own.name).unlink(missing_ok=True)
            self._names = {name: one for name, one in self._names.items() if name != key}

    def _path(self, name: str) -> Path:
        return self._folder / _file_of(name)


def _file_of(name: str) -> str:
    return f"{quote(canonical(name), safe='')}.json"


def _read_all(folder: Path) -> list[OwnName]:
    aside.clear_for_folder(folder)
    durable.tidy(folder)
    files = sorted(aside.names(folder, ".json", SCHEMA))
    read = {file: aside.read(folder / file, SCHEMA, _decoded, most=MOST_BYTES) for file in files}
    own = {file: one for file, one in read.items() if one is not None}
    places = set(own)
    return [
        one for file, one in own.items() if _is_in_place(folder, file, _file_of(one.name), places)
    ]


def _is_in_place(folder: Path, file: str, right: str, known: set[str]) -> bool:
    """Whether a file is the one of its name; an older mlxd told names apart that are one now."""
    if file == right:
        return True
    if right in known:
        aside.set_aside(folder / file, f"{right} is of this name, too")
        return False
    with contextlib.suppress(OSError):
        (folder / file).rename(folder / right)
        known.add(right)
    return True


def _encoded(own: OwnName) -> bytes:
    """A name that says nothing more is written as it always was."""
    said = asdict(own)
    if said.pop("preset") is None:
        said = {"schema": _PLAIN_SCHEMA} | said
    else:
        said = {"schema": SCHEMA} | said | {"preset": msgspec.to_builtins(own.preset)}
    return (json.dumps(said) + "\n").encode()


def _decoded(content: bytes) -> OwnName:
    """Raises one of `aside.STRANGE`."""
    said = json.loads(content)
    if said["schema"] != _PLAIN_SCHEMA:
        aside.check_version(said["schema"], SCHEMA)
    if said["made_by"] not in ("copy", "pull", "create"):
        raise ValueError("it does not say how it came")
    preset = _preset(said["preset"]) if said.get("preset") is not None else None
    return OwnName(str(said["name"]), str(said["model"]), said["made_by"], preset)


def _preset(said: object) -> Preset:
    try:
        return msgspec.convert(said, Preset)
    except msgspec.ValidationError as error:
        raise ValueError("it is damaged") from error
