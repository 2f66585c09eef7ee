"""Names, aliases, chains and folders: from what a user types to a `ModelCard`.

Folders are scanned in a thread, because a disk may hang; what was read is kept until the files of
a folder change. The guide model inside the package comes last in every list.
"""

from __future__ import annotations

import asyncio
import difflib
import logging
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

from mlxd.control.model_files import fingerprint, read_card, readable
from mlxd.core.clock import Clock
from mlxd.core.errors import ModelLoadFailed, ModelNotFound
from mlxd.core.models import ModelCard, canonical
from mlxd.policy.load import PolicySet
from mlxd.policy.schema import Model
from mlxd.policy.strict_yaml import dotted

log = logging.getLogger(__name__)

GUIDE = "mlxd-guide"
DEFAULT = "default"
FRESH_SECONDS = 1.0
"""A list is no older than this."""
STALE_SECONDS = 5.0
"""A request by a known name looks whether folders have changed, but does not wait for that."""
_MODEL_SUFFIXES = (".safetensors", ".gguf", ".npz", ".bin")


@dataclass(frozen=True, slots=True)
class _Place:
    """A folder that may be a model, under the name it would have."""

    name: str
    folder: Path


class Catalog:
    """The models that can be asked for."""

    def __init__(self, guide: Path, clock: Clock) -> None:
        self._guide = guide
        self._clock = clock
        self._cards: dict[str, ModelCard] = {}
        self._known: dict[Path, tuple[object, ModelCard]] = {}
        self._scanned: float | None = None
        self._scan: asyncio.Task[None] | None = None
        self._default: str | None = None

    async def cards(self, policies: PolicySet) -> list[ModelCard]:
        """Every model by name, the unavailable ones included, the guide last."""
        await self._refresh(policies, FRESH_SECONDS)
        return self.known()

    def known(self) -> list[ModelCard]:
        """As `cards`, from the last scan."""
        return list(self._cards.values())

    def default(self, policies: PolicySet) -> str:
        """The name of the model that `default` means now."""
        card = self._look_up(DEFAULT, policies)
        return card.name if card is not None else GUIDE

    async def resolve(self, name: str, policies: PolicySet) -> ModelCard:
        """The model that `name` means. Raises ModelNotFound, or ModelLoadFailed if unusable."""
        if self._scanned is None:
            await self._refresh(policies, FRESH_SECONDS)
        card = self._look_up(name, policies)
        if self._age() > STALE_SECONDS:
            self._start_scan(policies)
        if card is None or card.unavailable:
            await self._refresh(policies, FRESH_SECONDS)
            card = self._look_up(name, policies)
        if card is None:
            raise self._not_found(name, policies)
        if card.unavailable:
            raise ModelLoadFailed(f"model '{card.name}' cannot be used: {card.unavailable}")
        return card

    def _look_up(self, name: str, policies: PolicySet) -> ModelCard | None:
        wanted = canonical(name)
        for model, declared in policies.models.models.items():
            if wanted in map(canonical, declared.aliases):
                wanted = canonical(model)
        chain = policies.models.chains.get(wanted)
        for link in chain or ():
            card = self._by_name(canonical(link))
            if card is not None and not card.unavailable:
                return card
        if wanted == DEFAULT and not chain:
            wanted = canonical(self._default or GUIDE)
        return self._by_name(wanted)

    def _by_name(self, wanted: str) -> ModelCard | None:
        """By whole name, else by its last part where only one model has it."""
        if not wanted:
            return None
        card = self._cards.get(wanted)
        if card is not None:
            return card
        short = [c for key, c in self._cards.items() if key.rpartition("/")[2] == wanted]
        return short[0] if len(short) == 1 else None

    def _not_found(self, name: str, policies: PolicySet) -> ModelNotFound:
        wanted = canonical(name)
        if wanted in policies.models.chains:
            return ModelNotFound(
                name,
                ": none of its chain is there; add one that is",
                policy=policies.line(dotted(("models", "chains", wanted))),
            )
        near = difflib.get_close_matches(wanted, self._cards, n=3, cutoff=0.5)
        names = ", ".join(self._cards[key].name for key in near)
        return ModelNotFound(name, f"; did you mean {names}?" if near else "")

    async def _refresh(self, policies: PolicySet, max_age: float) -> None:
        """Scan again unless that was done in the last `max_age` seconds; one scan at a time."""
        if self._age() >= max_age:
            self._start_scan(policies)
        if self._scan is not None and self._age() >= max_age:
            await asyncio.shield(self._scan)

    def _start_scan(self, policies: PolicySet) -> None:
        """At most one at a time."""
        if self._scan is None or self._scan.done():
            self._scan = asyncio.create_task(self._rescan(policies), name="scan of models")

    def _age(self) -> float:
        """Seconds since the last scan; inf before the first."""
        return math.inf if self._scanned is None else self._clock.monotonic() - self._scanned

    async def _rescan(self, policies: PolicySet) -> None:
        cards = await asyncio.to_thread(self._read_all, policies)
        self._cards = {canonical(card.name): card for card in cards}
        self._choose_default()
        self._scanned = self._clock.monotonic()

    def _choose_default(self) -> None:
        """The first completion model by name, kept until it disappears."""
        usable = [
            card.name
            for card in self._cards.values()
            if not card.unavailable and "completion" in card.capabilities and card.name != GUIDE
        ]
        if self._default not in usable:
            self._default = usable[0] if usable else None

    # -- in a thread

    def _read_all(self, policies: PolicySet) -> list[ModelCard]:
        places = self._declared(policies) + self._found(policies)
        cards: dict[str, ModelCard] = {}
        for place in places:
            cards.setdefault(canonical(place.name), self._card(place, policies))
        ordered = sorted(cards.values(), key=lambda card: card.name.lower())
        return [*ordered, self._card(_Place(GUIDE, self._guide), policies)]

    def _declared(self, policies: PolicySet) -> list[_Place]:
        return [
            _Place(name, Path(model.path).expanduser())
            for name, model in policies.models.models.items()
            if model.path
        ]

    def _found(self, policies: PolicySet) -> list[_Place]:
        places: list[_Place] = []
        for root in policies.models.folders:
            places += _models_under(root)
        return places

    def _card(self, place: _Place, policies: PolicySet) -> ModelCard:
        """Read anew only if a file of the folder changed."""
        try:
            mark: object = fingerprint(place.folder)
        except OSError as error:
            mark = error.errno
        known = self._known.get(place.folder)
        if known is None or known[0] != mark:
            known = (mark, read_card(place.folder, place.name))
            self._known[place.folder] = known
        card = replace(known[1], name=readable(place.name))
        own = settings_of(place.name, policies)
        context = own.context if own is not None else None
        wanted = context or policies.models.defaults.context
        if wanted == "auto":
            return card
        return replace(card, context=min(card.context, wanted), trained_context=card.context)


def settings_of(name: str, policies: PolicySet) -> Model | None:
    """What models.yaml says of one model, however it writes the name."""
    wanted = canonical(name)
    for written, settings in policies.models.models.items():
        if canonical(written) == wanted:
            return settings
    return None


def _models_under(root: Path) -> list[_Place]:
    """`root/NAME` and `root/ORGANISATION/NAME`; the root itself if it is a model."""
    if _looks_like_model(root):
        return [_Place(root.name, root)]
    places: list[_Place] = []
    for child in _folders(root):
        if _looks_like_model(child):
            places.append(_Place(child.name, child))
        else:
            places += [
                _Place(f"{child.name}/{inner.name}", inner)
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
