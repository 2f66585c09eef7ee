"""Names that clients gave to models: what /api/copy makes, and the short name of a pull.

One small file each in `<state>/models.d/`; one that this version does not read is left alone, and
means nothing.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from mlxd.core.models import canonical

log = logging.getLogger(__name__)

SCHEMA = 1
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
    """All of them, and what is on the disk. The daemon alone writes there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
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
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._path(own.name)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps({"schema": SCHEMA} | asdict(own)) + "\n")
        temporary.replace(path)
        self._names[canonical(own.name)] = own

    def remove(self, own: OwnName) -> None:
        """Raises OSError."""
        self._path(own.name).unlink(missing_ok=True)
        self._names.pop(canonical(own.name), None)

    def _path(self, name: str) -> Path:
        return self._folder / f"{quote(canonical(name), safe='')}.json"


def _read_all(folder: Path) -> list[OwnName]:
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix == ".json")
    except OSError:
        return []
    found = [_read(path) for path in files if not path.name.startswith(".")]
    return [own for own in found if own is not None]


def _read(path: Path) -> OwnName | None:
    try:
        with path.open("rb") as stream:
            data = json.loads(stream.read(_MOST_BYTES))
        if data["schema"] == SCHEMA and data["made_by"] in ("copy", "pull"):
            return OwnName(str(data["name"]), str(data["model"]), data["made_by"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    log.warning("a name is left aside: %s cannot be read by this version", path.name)
    return None
