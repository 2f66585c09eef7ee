"""Names that clients gave to models: what /api/copy makes, and the short name of a pull.

One small file each in `<state>/models.d/`; one that this version does not read is set aside.
"""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from mlxd.core import aside, durable
from mlxd.core.models import canonical

SCHEMA = 1
MOST_NAMES = 1000
"""Every client that lists the models is told all of them."""
_MOST_BYTES = 4096


@dataclass(frozen=True, slots=True)
class OwnName:
    """One more name for a model."""

    name: str
    """As the client wrote it."""
    model: str
    """The catalogue's name of what it stands for; never an own name itself."""
    made_by: Literal["copy", "pull"]


class OwnNames:
    """All of them, and what is on the disk. The daemon alone writes there.

    `put` and `remove` wait for the disk, and may be called in any thread.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._changing = threading.Lock()
        self._names = {canonical(one.name): one for one in _read_all(folder)}

    def __call__(self) -> Mapping[str, str]:
        """From canonical names to the models they stand for."""
        return {name: one.model for name, one in self._names.items()}

    def get(self, name: str) -> OwnName | None:
        return self._names.get(canonical(name))

    def of(self, model: str) -> list[OwnName]:
        """All that stand for one model."""
        wanted = canonical(model)
        return [one for one in self._names.values() if canonical(one.model) == wanted]

    def put(self, own: OwnName) -> None:
        """Add it, in place of one that is called the same. Raises OSError."""
        key = canonical(own.name)
        said = json.dumps({"schema": SCHEMA} | asdict(own)) + "\n"
        with self._changing:
            if len(self._names) >= MOST_NAMES and key not in self._names:
                raise OSError(errno.EDQUOT, f"there are {MOST_NAMES} such names already")
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            durable.write(self._path(own.name), said.encode())
            self._names = {**self._names, key: own}

    def remove(self, own: OwnName) -> None:
        """Raises OSError."""
        key = canonical(own.name)
        with self._changing:
            self._path(own.name).unlink(missing_ok=True)
            self._names = {name: one for name, one in self._names.items() if name != key}

    def _path(self, name: str) -> Path:
        return self._folder / f"{quote(canonical(name), safe='')}.json"


def _read_all(folder: Path) -> list[OwnName]:
    aside.clear_for_folder(folder)
    durable.tidy(folder)
    files = [folder / name for name in sorted(aside.names(folder, ".json", SCHEMA))]
    found = [aside.read(file, SCHEMA, _decoded, most=_MOST_BYTES) for file in files]
    return [own for own in found if own is not None]


def _decoded(content: bytes) -> OwnName:
    """Raises one of `aside.STRANGE`."""
    said = json.loads(content)
    aside.check_version(said["schema"], SCHEMA)
    if said["made_by"] not in ("copy", "pull"):
        raise ValueError("it does not say how it came")
    return OwnName(str(said["name"]), str(said["model"]), said["made_by"])
