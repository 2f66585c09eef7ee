"""Brings memory in line with the policies in the background; nobody waits for it.

Once folders have been scanned for new policies, loaded models follow their names, and what
`models.preload` lists is loaded, one after the other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Hashable, Iterable

from mlxd.control.catalog import Catalog
from mlxd.control.model_settings import settings_for, ways_of_loading
from mlxd.control.names import Names
from mlxd.control.residency import Residency
from mlxd.control.resident import Evicts
from mlxd.core.errors import MlxdError, Overloaded
from mlxd.core.models import ModelCard, ModelSpec
from mlxd.policy.policy_set import PolicySet

log = logging.getLogger(__name__)

_AGAIN_SECONDS = 1.0


class Preloader:
    """Loads what policy lists: each name once, as long as it is listed and means the same.

    What leaves memory later, because a client had it unloaded or a request needed the room, comes
    back with the next request for it, or when it is listed anew. What had to be skipped is tried
    again at the next `apply`; a load that failed, only when the model's files have changed, or how
    it is to be loaded.
    """

    def __init__(self, catalog: Catalog, residency: Residency) -> None:
        self._catalog = catalog
        self._residency = residency
        self._policies: PolicySet | None = None
        self._meant: dict[str, ModelSpec] = {}
        """What each listed name stands for; that is protected."""
        self._done: dict[str, ModelSpec] = {}
        """Listed names that were loaded."""
        self._skipped: dict[str, str] = {}
        """Listed names that could not be, and why."""
        self._followed: Hashable = None
        """The folders and ways of loading that loaded models were last held against."""
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, policies: PolicySet) -> None:
        """Begin, once the daemon serves."""
        self._policies = policies
        self.apply(policies)

    def apply(self, new: PolicySet) -> None:
        """Work by `new` from now on; before `start`, nothing."""
        if self._policies is None:
            return
        self._policies = new
        listed = new.models.preload
        self._done = {name: spec for name, spec in self._done.items() if name in listed}
        self._skipped = {name: why for name, why in self._skipped.items() if name in listed}
        self._protect(new)
        for task in self._tasks:
            task.cancel()
        task = asyncio.create_task(self._work(new), name="preload")
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def keeps(self, card: ModelCard) -> bool:
        """Whether a model is to be in memory always: it is listed, or pinned."""
        if self._policies is None:
            return False
        own = settings_for(card, self._policies.models)
        return card.spec in self._meant.values() or (own is not None and own.pinned)

    def warnings(self) -> list[str]:
        """What is listed and could not be loaded, as long as it is not in memory."""
        return [
            f"models.preload: '{name}' is not loaded: {why}"
            for name, why in self._skipped.items()
            if not self._loaded(name)
        ]

    async def close(self) -> None:
        """Stop loading; to be called before the residency is closed."""
        self._policies = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _work(self, policies: PolicySet) -> None:
        names = await self._scanned(policies)
        self._protect(policies)
        ways = ways_of_loading(policies.models)
        if ways != self._followed:
            self._followed = None  # an edit that comes before all have followed may be taken back
            await self._follow(names.cards.values(), policies)
            self._followed = ways
        for name in policies.models.preload:
            try:
                await self._preload(name, policies)
            except MlxdError as error:
                self._skip(name, error.explained())
                self._protect(policies)  # it may stay as it was before an edit
            except Exception:  # the edge: what is odd about one name is no reason to load no other
                log.exception("models.preload: '%s' could not be loaded: a defect", name)
                self._skip(name, "a defect; the log has it")

    async def _scanned(self, policies: PolicySet) -> Names:
        """Waits until folders can be looked at: files or threads may be short for a while."""
        told = ""
        while True:
            try:
                return await self._catalog.refreshed(policies)
            except Overloaded as error:
                if error.message != told:
                    log.warning("preloading waits: %s", error.message)
                told = error.message
                await asyncio.sleep(error.retry_after or _AGAIN_SECONDS)

    async def _follow(self, cards: Iterable[ModelCard], policies: PolicySet) -> None:
        try:
            await self._residency.follow(cards, policies)
        except Exception:  # the edge: what is listed is to be loaded all the same
            log.exception("loaded models do not follow their names: a defect")

    async def _preload(self, name: str, policies: PolicySet) -> None:
        """Raises what resolving and leasing raise."""
        card = await self._catalog.resolve(name, policies)
        self._protect(policies)
        if self._done.get(name) == card.spec or self._failed_before(name, card):
            return
        self._done.pop(name, None)  # what was loaded another way may have left for this
        await self._residency.load(card, policies, Evicts.UNLISTED)
        self._done[name] = card.spec
        self._skipped.pop(name, None)

    def _failed_before(self, name: str, card: ModelCard) -> bool:
        return name in self._skipped and bool(self._residency.failed([card]))

    def _skip(self, name: str, why: str) -> None:
        if name not in self._skipped:
            log.warning("models.preload: '%s' is skipped: %s", name, why)
        self._skipped[name] = why

    def _protect(self, policies: PolicySet) -> None:
        """A name that cannot be told before a scan ends means what it meant."""
        found = {name: self._catalog.find(name, policies) for name in policies.models.preload}
        self._meant = {
            name: card.spec if card is not None else self._meant[name]
            for name, card in found.items()
            if card is not None or name in self._meant
        }
        self._residency.protect(frozenset(self._meant.values()))

    def _loaded(self, name: str) -> bool:
        card = self._catalog.find(name, self._policies) if self._policies is not None else None
        return card is not None and self._residency.serves(card.spec)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("preloading ended: a defect of mlxd", exc_info=error)
