"""What clients may do with the models that there are: give them more names, and remove them."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mlxd.control.blobs import Blobs
from mlxd.control.catalog import Catalog
from mlxd.control.created import CreatedModels
from mlxd.control.model_settings import settings_for
from mlxd.control.names import Names
from mlxd.control.own_names import OwnName, OwnNames
from mlxd.control.pull import Puller, Record
from mlxd.control.pulled import PulledModels
from mlxd.control.residency import Residency
from mlxd.core.errors import (
    Forbidden,
    InsufficientStorage,
    InvalidRequest,
    ModelInUse,
    ModelNotFound,
)
from mlxd.core.models import ModelCard, canonical, without_library
from mlxd.core.preset import Preset
from mlxd.core.threads import Threads
from mlxd.policy.policy_set import PolicySet

Check = Callable[[ModelCard], None]
"""Raises Forbidden for a model that is not for whoever asks."""
_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}"
_NAME = re.compile(rf"(?:{_PART}/){{0,2}}{_PART}(?::{_PART})?")


def _anyone(_: ModelCard) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Library:
    """Own names and pulled models come and go; whatever else there is belongs to the operator."""

    catalog: Catalog
    residency: Residency
    puller: Puller
    pulled: PulledModels
    own_names: OwnNames
    created: CreatedModels
    blobs: Blobs
    record: Record
    threads: Threads = field(default_factory=lambda: Threads("pulled models"))

    async def copy(
        self, source: str, destination: str, policies: PolicySet, check: Check = _anyone
    ) -> ModelCard:
        """Give a model one more name; its files are not copied. Raises InvalidRequest,
        ModelNotFound, and what `check` raises.
        """
        names, card = await self._found(source, policies, check)
        self._check_free(destination, names, policies, check)
        own = self.own_names.get(card.name)
        preset = own.preset if own is not None else None
        name = OwnName(destination.strip(), self._root(card), "copy", preset)
        await self._keep(name)
        self._rename(policies)
        self._say("model_copied", f"{destination} is {name.model}", name.model)
        return card

    async def create(
        self, name: str, source: str, preset: Preset, policies: PolicySet, check: Check = _anyone
    ) -> ModelCard:
        """A model that is another one with `preset` in front; what that does not say the other one
        does. One that was created before is replaced. Raises InvalidRequest, ModelNotFound, and
        what `check` raises.
        """
        names, card = await self._found(source, policies, check)
        self._check_free(name, names, policies, check, "model", over=card)
        known = self.own_names.get(card.name)
        if known is not None and known.preset is not None:
            preset = preset.over(known.preset)
        said = preset if preset != Preset() else None
        own = OwnName(name.strip(), self._root(card), "create" if said else "copy", said)
        await self._keep(own)
        self._rename(policies)
        self._say("model_copied", f"{name} is made of {own.model}", own.model)
        return card

    async def build(
        self,
        name: str,
        files: Sequence[tuple[str, str]],
        preset: Preset,
        policies: PolicySet,
        check: Check = _anyone,
    ) -> None:
        """A model of uploaded files, with `preset` in front. One that was built under this name
        before is replaced. Raises InvalidRequest, ModelInUse, InsufficientStorage, and what `check`
        raises.
        """
        names = await self.catalog.rescanned(policies)
        old = names.cards.get(canonical(name))
        self._check_free(name, names, policies, check, "model", over=old)
        replaced = old.path if old is not None and old.source == "created" else ""
        try:
            await self.threads.run(self.created.build, name, files, replaced)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise InsufficientStorage("the disk has no room for this model") from error
            raise ModelInUse(f"'{name}' cannot be built: {error.strerror}") from error
        if replaced and old is not None:
            self.residency.unload(old)
        own = self.own_names.get(name)
        if preset != Preset():
            await self._keep(OwnName(name.strip(), name.strip(), "create", preset))
        elif own is not None:
            await self._remove_name(own)
        await self.catalog.rescanned(policies)
        self._rename(policies)
        self._say("model_created", f"{name} was made of uploaded files", name)

    async def tidy(self, policies: PolicySet) -> None:
        """Remove what earlier runs have left half made, and uploads that nobody wanted."""
        await self.threads.run(self.created.tidy)
        await self.threads.run(self.blobs.sweep, float(policies.models.uploads.keep))

    async def _found(self, name: str, policies: PolicySet, check: Check) -> tuple[Names, ModelCard]:
        """Raises ModelNotFound, and what `check` raises."""
        names = await self.catalog.rescanned(policies)
        card = names.find(name)
        if card is None:
            raise ModelNotFound(name)
        check(card)
        return names, card

    def _root(self, card: ModelCard) -> str:
        """The name of what an own name stands for, else the card's."""
        own = self.own_names.get(card.name)
        return own.model if own is not None else card.name

    async def _keep(self, own: OwnName) -> None:
        try:
            await self.threads.run(self.own_names.put, own)
        except OSError as error:
            if error.errno == errno.EFBIG:
                raise InvalidRequest(f"{own.name}: {error.strerror}") from error
            raise ModelInUse(f"the name cannot be kept: {error.strerror}") from error

    async def delete(self, name: str, policies: PolicySet, check: Check = _anyone) -> None:
        """Remove a copy's name, or a model that was pulled; of several names that it was pulled by,
        the last takes it along.

        Requests that use it go on; then it leaves memory. Raises ModelNotFound, Forbidden,
        ModelInUse, and what `check` raises.
        """
        names = await self.catalog.rescanned(policies)
        card = names.find(name)
        if card is not None:
            check(card)
            if canonical(card.name) == canonical(plain := without_library(name)):
                name = plain
        own = self.own_names.get(name)
        if own is not None and (card is None or self._leads_elsewhere(own)):
            await self._remove_name(own)
            self._rename(policies)
        elif card is not None:
            await self._remove_model(card, names, policies)
        else:
            raise ModelNotFound(name)

    def _leads_elsewhere(self, own: OwnName) -> bool:
        """Whether what it stands for stays when the name goes."""
        if canonical(own.model) == canonical(own.name):
            return False
        return own.made_by != "pull" or len(self.own_names.of(own.model)) > 1

    def _check_free(
        self,
        name: str,
        names: Names,
        policies: PolicySet,
        check: Check,
        param: str = "destination",
        *,
        over: ModelCard | None = None,
    ) -> None:
        """Raises InvalidRequest for what is no name, or is a name already: but for an own name, and
        for `over` where that was made of uploaded files. Of these, what `check` raises: whatever
        has the name now goes.
        """
        wanted = canonical(name)
        if not _NAME.fullmatch(name.strip()):
            raise InvalidRequest(f'{param} "{name[:200]}" is invalid', param=param)
        settings = policies.models
        aliases = (alias for model in settings.models.values() for alias in model.aliases)
        taken = {*map(canonical, settings.chains), *map(canonical, aliases)}
        card = names.cards.get(wanted)
        free = card is None or bool(card.copy_of) or (card is over and card.source == "created")
        if wanted in taken or not free:
            raise InvalidRequest(
                f'{param} "{name}" is invalid: a model is called so already', param=param
            )
        if card is not None:
            check(card)

    async def _remove_model(self, card: ModelCard, names: Names, policies: PolicySet) -> None:
        declared = settings_for(card, policies.models)
        place = self.created if self.created.holds(card.path) else self.pulled
        if not place.holds(card.path) or (declared is not None and declared.path):
            raise Forbidden(
                f"model '{card.name}' was not pulled: its folder is its owner's, and is not removed"
            )
        folder = next(
            (one for key, one in names.cards.items() if self._is_folder(one, key, card)), card
        )
        others = self.own_names.of(folder.name)
        elsewhere = (one for one in others if canonical(one.name) != canonical(folder.name))
        if copies := sorted(one.name for one in elsewhere if one.made_by != "pull"):
            raise ModelInUse(
                f"{', '.join(copies)} would go with '{folder.name}': delete that first"
            )
        if self.puller.is_pulling(folder.name):
            raise ModelInUse(f"'{folder.name}' is being pulled")
        try:
            await self.threads.run(place.remove, card.path)
        except OSError as error:
            raise ModelInUse(f"'{folder.name}' cannot be removed: {error.strerror}") from error
        for own in others:
            await self._remove_name(own)
        self.residency.unload(card)
        await self.catalog.rescanned(policies)
        self._say("model_removed", f"{folder.name} was removed", folder.name)

    def _is_folder(self, one: ModelCard, key: str, card: ModelCard) -> bool:
        """Whether this is the model that `card` may be a copy of."""
        return one.path == card.path and self.own_names.get(key) is None

    def _rename(self, policies: PolicySet) -> None:
        self.residency.rename(self.catalog.known(), policies)

    async def _remove_name(self, own: OwnName) -> None:
        try:
            await self.threads.run(self.own_names.remove, own)
        except OSError as error:
            raise ModelInUse(f"'{own.name}' cannot be removed: {error.strerror}") from error
        self._say("name_removed", f"{own.name} is no name of {own.model} any more", own.model)

    def _say(self, type: str, words: str, model: str) -> None:
        self.record(type, words, {"model": model})
