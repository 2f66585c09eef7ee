"""Which folders are models: what a scan finds, and what of it is true under other policies too.

Reading folders belongs in a thread, because a disk may hang. What was read of one is kept until its
files change.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Concatenate, Generic, ParamSpec, TypeVar

from mlxd.control.additions import Adapter, Template, read_adapter, read_template
from mlxd.control.layouts import Place, has_tokenizer, models_under
from mlxd.control.model_files import fingerprint, read_card
from mlxd.control.reading import is_missing, readable
from mlxd.core import places
from mlxd.core.models import ModelCard, canonical
from mlxd.policy.schema import Models

GUIDE = "mlxd-guide"
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Scope:
    """What of the policies decides which folders are scanned, and under which names."""

    declared: tuple[tuple[str, Path], ...]
    """Names as they are written, each with its folder; one per canonical name."""
    roots: tuple[Path, ...]
    adapters: frozenset[Path] = frozenset()
    templates: frozenset[Path] = frozenset()

    @classmethod
    def of(cls, models: Models) -> Scope:
        declared: dict[str, tuple[str, Path]] = {}
        for name, model in models.models.items():
            if model.path:
                declared.setdefault(canonical(name), (name, places.expanded(model.path)))
        return cls(
            tuple(declared.values()),
            models.folders,
            frozenset(file for m in models.models.values() if (file := expanded(m.adapter))),
            frozenset(file for m in models.models.values() if (file := expanded(m.chat_template))),
        )

    @property
    def names(self) -> set[str]:
        """Of the declared ones, canonical."""
        return {canonical(name) for name, _ in self.declared}

    def before(self, root: Path) -> set[Path]:
        """The folders that are looked at before `root`."""
        return set(self.roots[: self.roots.index(root)])


def expanded(path: str | None) -> Path | None:
    """With ~ as this user's home."""
    return places.expanded(path) if path else None


@dataclass(frozen=True, slots=True)
class Find:
    """A place that had its name first, and what its files say."""

    place: Place
    card: ModelCard


@dataclass(frozen=True, slots=True)
class Findings:
    """What reading the folders of one scope gave."""

    finds: tuple[Find, ...]
    """By name, the guide last."""
    adapters: Mapping[Path, Adapter] = field(default_factory=dict)
    templates: Mapping[Path, Template] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scan:
    """What one scan found."""

    scope: Scope
    at: float
    """When it ended, on the monotonic clock."""
    found: Findings

    def certain(self, scope: Scope) -> list[Find]:
        """What a scan of `scope` would find too, as far as that is known without one."""
        if scope == self.scope:
            return list(self.found.finds)
        declared = scope.names
        return [find for find in self.found.finds if self._stays_first(find.place, scope, declared)]

    def _stays_first(self, place: Place, scope: Scope, declared: set[str]) -> bool:
        """Whether a scan of `scope` finds this place too, and no other first by its name."""
        if place.root is None:
            return place.name == GUIDE or (place.name, place.folder) in scope.declared
        if canonical(place.name) in declared:
            return False
        if place.source in ("pulled", "created"):  # those come before all roots
            return True
        return place.root in scope.roots and scope.before(place.root) <= self.scope.before(
            place.root
        )


class Scanner:
    """Reads folders. Blocks: call it in a thread."""

    def __init__(self, guide: Path, extra: Sequence[tuple[str, Path]]) -> None:
        """`extra`: folders of models that are mlxd's own, each with what they are (`ModelCard`'s
        `source`); they come before those of policy.
        """
        self._guide = guide
        self._extra = tuple(extra)
        self._cards = _Kept(_folder_mark, read_card)
        self._adapters = _Kept(fingerprint, read_adapter)
        self._templates = _Kept(_file_mark, read_template)
        self._last: Findings | None = None

    def read(self, scope: Scope) -> Findings:
        """Everything in `scope`; of one name the first place counts, declared ones first. It is the
        same object as the last time where nothing has changed.

        Raises OutOfFiles.
        """
        found, last = self._read(scope), self._last
        if last is not None and found == last:
            return last
        self._last = found
        return found

    def _read(self, scope: Scope) -> Findings:
        looked = [Place(name, folder, "declared") for name, folder in scope.declared]
        looked += [p for source, root in self._extra for p in models_under(root, source)]
        looked += [p for root in scope.roots for p in models_under(root)]
        finds: dict[str, Find] = {}
        for place in looked:
            key = canonical(place.name)
            if key not in finds:
                finds[key] = self._find(place)
            elif place.earlier:
                finds[key] = self._whole(finds[key], place)
        ordered = sorted(finds.values(), key=lambda find: find.card.name.lower())
        return Findings(
            (*ordered, self._find(Place(GUIDE, self._guide, "guide"))),
            {folder: self._adapters.get(folder) for folder in scope.adapters},
            {file: self._templates.get(file) for file in scope.templates},
        )

    def _whole(self, first: Find, earlier: Place) -> Find:
        """What stands in for a revision that is not whole yet, or may never be."""
        wrong = _wrong(first)
        why = wrong or ("" if has_tokenizer(first.place.folder) else "it has no tokenizer")
        if not why or first.place.folder.parent != earlier.folder.parent:
            return first
        found = self._find(earlier)
        if _wrong(found) or not (wrong or has_tokenizer(earlier.folder)):
            return first
        return replace(found, card=replace(found.card, outdated=why))

    def _find(self, place: Place) -> Find:
        card = self._cards.get(place.folder, place.name)
        astray = place.source == "declared" and is_missing(place.folder, stat.S_ISDIR)
        return Find(
            place,
            replace(
                card,
                name=readable(place.name),
                source=place.source,
                fault="path" if astray and card.unavailable else "",
            ),
        )


def _wrong(find: Find) -> str:
    return find.card.unavailable or find.card.flaw


class _Kept(Generic[P, T]):
    """What was read of paths, each read anew only if its mark is another."""

    def __init__(
        self, mark: Callable[[Path], Hashable], read: Callable[Concatenate[Path, P], T]
    ) -> None:
        self._mark = mark
        self._read = read
        self._known: dict[Path, tuple[Hashable, T]] = {}

    def get(self, path: Path, *arguments: P.args, **options: P.kwargs) -> T:
        """The mark is taken first: what changes while it is read is read again next time."""
        mark: Hashable
        try:
            mark = self._mark(path)
        except OSError as error:
            mark = error.errno
        known = self._known.get(path)
        if known is None or known[0] != mark:
            known = (mark, self._read(path, *arguments, **options))
            self._known[path] = known
        return known[1]


def _folder_mark(folder: Path) -> Hashable:
    """A folder that is moved keeps the marks of its files; a card has its real path."""
    return os.path.realpath(folder), fingerprint(folder)


def _file_mark(file: Path) -> Hashable:
    status = file.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
