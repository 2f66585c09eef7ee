"""Which folders are models: what a scan finds, and what of it is true under other policies too.

Reading folders belongs in a thread, because a disk may hang. What was read of one is kept until its
files change.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mlxd.control.model_files import fingerprint, read_card, readable
from mlxd.core.models import ModelCard, canonical
from mlxd.policy.schema import Models

GUIDE = "mlxd-guide"
_MODEL_SUFFIXES = (".safetensors", ".gguf", ".npz", ".bin")


@dataclass(frozen=True, slots=True)
class Scope:
    """What of the policies decides which folders are scanned, and under which names."""

    declared: tuple[tuple[str, Path], ...]
    """Names as they are written, each with its folder; one per canonical name."""
    roots: tuple[Path, ...]

    @classmethod
    def of(cls, models: Models) -> Scope:
        declared: dict[str, tuple[str, Path]] = {}
        for name, model in models.models.items():
            if model.path:
                declared.setdefault(canonical(name), (name, Path(model.path).expanduser()))
        return cls(tuple(declared.values()), models.folders)

    @property
    def names(self) -> set[str]:
        """Of the declared ones, canonical."""
        return {canonical(name) for name, _ in self.declared}

    def before(self, root: Path) -> set[Path]:
        """The folders that are looked at before `root`."""
        return set(self.roots[: self.roots.index(root)])


@dataclass(frozen=True, slots=True)
class Place:
    """A folder that may be a model, under the name it would have."""

    name: str
    folder: Path
    root: Path | None = None
    """The scanned folder it is in; None for a declared one, and for the guide."""


@dataclass(frozen=True, slots=True)
class Find:
    """A place that had its name first, and what its files say."""

    place: Place
    card: ModelCard


@dataclass(frozen=True, slots=True)
class Scan:
    """What one scan found."""

    scope: Scope
    at: float
    """When it ended, on the monotonic clock."""
    finds: tuple[Find, ...]
    """By name, the guide last."""

    def certain(self, scope: Scope) -> list[Find]:
        """What a scan of `scope` would find too, as far as that is known without one."""
        if scope == self.scope:
            return list(self.finds)
        declared = scope.names
        return [find for find in self.finds if self._stays_first(find.place, scope, declared)]

    def _stays_first(self, place: Place, scope: Scope, declared: set[str]) -> bool:
        """Whether a scan of `scope` finds this place too, and no other first by its name."""
        if place.root is None:
            return place.name == GUIDE or (place.name, place.folder) in scope.declared
        if canonical(place.name) in declared or place.root not in scope.roots:
            return False
        return scope.before(place.root) <= self.scope.before(place.root)


class Scanner:
    """Reads folders. Blocks: call it in a thread."""

    def __init__(self, guide: Path, extra: Sequence[Path] = ()) -> None:
        """`extra`: folders of models that mlxd pulled; they come before those of policy."""
        self._guide = guide
        self._extra = tuple(extra)
        self._known: dict[Path, tuple[object, ModelCard]] = {}

    def read(self, scope: Scope) -> tuple[Find, ...]:
        """Everything in `scope`; of one name the first place counts, declared ones first."""
        finds: dict[str, Find] = {}
        declared = [Place(name, folder) for name, folder in scope.declared]
        found = [place for root in (*self._extra, *scope.roots) for place in _models_under(root)]
        for place in declared + found:
            if canonical(place.name) not in finds:
                finds[canonical(place.name)] = self._find(place)
        ordered = sorted(finds.values(), key=lambda find: find.card.name.lower())
        return (*ordered, self._find(Place(GUIDE, self._guide)))

    def _find(self, place: Place) -> Find:
        """Read anew only if a file of the folder changed."""
        try:
            mark: object = fingerprint(place.folder)
        except OSError as error:
            mark = error.errno
        known = self._known.get(place.folder)
        if known is None or known[0] != mark:
            known = (mark, read_card(place.folder, place.name))
            self._known[place.folder] = known
        return Find(place, replace(known[1], name=readable(place.name)))


def _models_under(root: Path) -> list[Place]:
    """`root/NAME` and `root/ORGANISATION/NAME`; the root itself if it is a model."""
    if _looks_like_model(root):
        return [Place(root.name, root, root)]
    places: list[Place] = []
    for child in _folders(root):
        if _looks_like_model(child):
            places.append(Place(child.name, child, root))
        else:
            places += [
                Place(f"{child.name}/{inner.name}", inner, root)
                for inner in _folders(child)
                if _looks_like_model(inner)
            ]
    return places


def _folders(root: Path) -> list[Path]:
    """Folders, and links that lead nowhere: those are shown as unavailable."""
    try:
        with os.scandir(root) as entries:
            return sorted(
                Path(entry.path)
                for entry in entries
                if not entry.name.startswith(".") and _folder_or_dead_link(entry)
            )
    except OSError:
        return []


def _folder_or_dead_link(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir() or (entry.is_symlink() and not Path(entry.path).exists())
    except OSError:
        return True  # a link that leads to itself


def _looks_like_model(folder: Path) -> bool:
    """A folder with a config or weights, one that cannot be read, or a link to nowhere."""
    try:
        with os.scandir(folder) as entries:
            return any(
                entry.name == "config.json" or entry.name.endswith(_MODEL_SUFFIXES)
                for entry in entries
            )
    except PermissionError:
        return True
    except OSError:
        return folder.is_symlink()
