"""`.mlxd.json` in the folder of a pulled model: where it is from, and what each file must be."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from mlxd.core import durable

FILE = ".mlxd.json"
PARTIAL = ".partial"
"""The folder, beside pulled models, of those that are not whole yet."""
SCHEMA = 1
_MOST_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class File:
    """One file of a model."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What was pulled."""

    repo: str
    """ORGANISATION/NAME on the hub."""
    revision: str
    """The commit."""
    files: tuple[File, ...]

    @property
    def size_bytes(self) -> int:
        return sum(file.size for file in self.files)


def read(folder: Path) -> Manifest | None:
    """None where there is none, or one that this version does not read."""
    try:
        found = json.loads(durable.read(folder / FILE, _MOST_BYTES))
        if found["schema"] != SCHEMA:
            return None
        files = tuple(
            File(str(f["name"]), int(f["size"]), str(f["sha256"])) for f in found["files"]
        )
        return Manifest(str(found["repo"]), str(found["revision"]), files)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def write(folder: Path, manifest: Manifest) -> None:
    """On the disk when this returns. Raises OSError."""
    text = json.dumps({"schema": SCHEMA} | asdict(manifest), indent=1) + "\n"
    with (folder / FILE).open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
