"""The generations that were in force, kept in the state folder: last known good, and rollback.

One file per generation, written whole or not at all, holds all policy files verbatim: a boot can
never find a mix. Policies name secrets and never hold them, so neither does this.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlxd.core import aside, durable, places
from mlxd.policy.files import PolicyFiles

KEPT = 10
"""Generations; older ones are forgotten."""
_VERSION = 1
_MOST_BYTES = 16 << 20
_NAME = re.compile(r"([0-9]{8})\.json")


@dataclass(frozen=True, slots=True)
class Generation:
    """One generation: its files, and how it came."""

    number: int
    folder: str
    """Empty: there was none, built-in defaults were in force."""
    contents: Mapping[str, bytes]
    digest: str
    """Of the effective values."""
    at: float
    """Seconds since the epoch."""
    trigger: str
    by: str
    changes: tuple[Mapping[str, Any], ...] = ()
    """As `diff.Change.as_json`."""

    def files(self) -> PolicyFiles:
        return PolicyFiles(Path(self.folder) if self.folder else None, self.contents)

    def after(self, known: Generation | None) -> Generation:
        """As it is kept where one of its number is: with that one's story, if it has its values."""
        if known is None or known.digest != self.digest:
            return self
        return replace(known, folder=self.folder, contents=self.contents)


class History:
    """The last `KEPT` generations in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def tidy(self) -> None:
        """At a start: set aside what is no file, or could never be forgotten."""
        aside.clear_for_folder(self.folder)
        durable.tidy(self.folder)
        for number in self.numbers():
            aside.clear_for_file(self._file(number))

    def unread(self) -> list[str]:
        """Which generations cannot be used, for people. What another version wrote, or is damaged,
        stays where it is: no other generation gets its number, and it goes when it is old.
        """
        found = []
        for number in self.numbers():
            try:
                self._read(number)
            except aside.OtherVersion as error:
                found.append(f"policy generation {number} cannot be used: {error}")
            except (OSError, *aside.STRANGE):
                found.append(f"policy generation {number} cannot be used: it is damaged")
        return found

    def record(self, generation: Generation) -> None:
        """Write it down. One of this number keeps its story and gets the new text.

        Raises OSError.
        """
        generation = generation.after(self.get(generation.number))
        durable.put(self._file(generation.number), _encoded(generation))
        for number in self.numbers()[:-KEPT]:
            self._file(number).unlink(missing_ok=True)

    def numbers(self) -> list[int]:
        """Of the generations that are kept, rising."""
        try:
            names = [entry.name for entry in self.folder.iterdir()]
        except OSError:
            return []
        return sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))

    def is_guarded(self) -> bool:
        """Whether this user may not know which are kept."""
        return places.is_forbidden(lambda: os.scandir(self.folder).close())

    def get(self, number: int) -> Generation | None:
        """None: not kept, or not readable by this version."""
        try:
            return self._read(number)
        except (OSError, *aside.STRANGE):
            return None

    def newest_first(self) -> Iterator[Generation]:
        """Those that can be read."""
        for number in reversed(self.numbers()):
            generation = self.get(number)
            if generation is not None:
                yield generation

    def _read(self, number: int) -> Generation:
        """Raises OSError, and one of `aside.STRANGE`."""
        return _decoded(number, durable.read(self._file(number), _MOST_BYTES))

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:08d}.json"


def story(generation: Generation) -> dict[str, Any]:
    """How it came, for people and programs."""
    at = datetime.fromtimestamp(generation.at, UTC).isoformat(timespec="seconds")
    return {
        "generation": generation.number,
        "at": at.replace("+00:00", "Z"),
        "trigger": generation.trigger,
        "by": generation.by,
        "changes": [dict(change) for change in generation.changes],
        "files": sorted(generation.contents),
    }


def history_of(state: Path) -> History:
    """The history that a state folder holds."""
    return History(state / "lkg")


def _encoded(generation: Generation) -> bytes:
    """Policy files are UTF-8, or they would not have been in force."""
    return json.dumps(
        {
            "version": _VERSION,
            "folder": generation.folder,
            "digest": generation.digest,
            "at": generation.at,
            "trigger": generation.trigger,
            "by": generation.by,
            "changes": [dict(change) for change in generation.changes],
            "files": {name: raw.decode() for name, raw in generation.contents.items()},
        },
        ensure_ascii=False,
        indent=1,
    ).encode("utf-8", "surrogatepass")


def _decoded(number: int, raw: bytes) -> Generation:
    """Raises one of `aside.STRANGE` for what this version did not write."""
    said = json.loads(raw)
    aside.check_version(said["version"], _VERSION)
    datetime.fromtimestamp(said["at"], UTC)  # it will be shown
    return Generation(
        number=number,
        folder=said["folder"],
        contents={name: text.encode() for name, text in said["files"].items()},
        digest=said["digest"],
        at=float(said["at"]),
        trigger=said["trigger"],
        by=said["by"],
        changes=tuple(dict(change) for change in said["changes"]),
    )
