"""The models that can be asked for, kept true while folders and policies change.

The guide model inside the package comes last in every list.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path

from mlxd.control.additions import Adapter, Template, read_adapter, read_template
from mlxd.control.checksums import Checksums
from mlxd.control.faults import blame
from mlxd.control.model_files import read_card
from mlxd.control.model_settings import with_files
from mlxd.control.names import DEFAULT, Names
from mlxd.control.own_names import OwnName
from mlxd.control.predecessors import Predecessors
from mlxd.control.reading import OutOfFiles
from mlxd.control.rights import rights_of
from mlxd.control.scan import GUIDE, Scan, Scanner, Scope
from mlxd.core.caller import Caller
from mlxd.core.clock import Clock
from mlxd.core.errors import ModelLoadFailed, ModelNotFound, Overloaded
from mlxd.core.models import ModelCard, canonical
from mlxd.core.threads import NoThread, Threads
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.schema import Models
from mlxd.policy.strict_yaml import dotted

log = logging.getLogger(__name__)
FRESH_SECONDS = 1.0
"""A list is no older than this."""
STALE_SECONDS = 5.0
"""A request by a known name looks whether folders have changed, but does not wait for that."""
_VIEWS = 8
"""Equal policies may come as many objects (a comment moved); names are worked out for so many."""

_CANDIDATES = 8
"""Of the models that a name may mean, those that are named to who asked by it."""


class Catalog:
    """Scans when it must, and answers by the last scan where that is right.

    Where the daemon can open no files, the last scan stays; if there was none, whoever asks is told
    Overloaded.

    A scan is made for a scope. One for other policies than those asked by tells only what it can
    tell (see `Names`); whoever needs more waits for a scan of the right scope.
    """

    def __init__(
        self,
        guide: Path,
        clock: Clock,
        pulled: Path | None = None,
        created: Path | None = None,
        names: Callable[[], Mapping[str, OwnName]] = dict,
        *,
        predecessors: Predecessors | None = None,
    ) -> None:
        """`pulled`, `created`: the folders of the models that mlxd fetched itself, and of those
        that were made of uploaded files. `names`: what clients called
        models, by canonical name.
        """
        own = (("pulled", pulled), ("created", created))
        self._scanner = Scanner(guide, [(source, root) for source, root in own if root is not None])
        self._names = names
        self._named: Mapping[str, OwnName] = {}
        """`names` as the views know it."""
        self._predecessors = predecessors or Predecessors()
        self._known_changes = 0, 0
        """Of predecessors and checksums, as the views know them."""
        self._checksums = Checksums()
        self._clock = clock
        self._threads = Threads("models")
        self._models: Models | None = None
        """Those in force; until `apply` is called, those of the first who asked."""
        self._scope: Scope | None = None
        self._latest: Scan | None = None
        self._scans: dict[Scope, asyncio.Task[Scan]] = {}
        self._views: dict[int, Names] = {}
        """By the identity of the policies they are for, which they keep alive."""
        self._default: str | None = None

    def apply(self, new: PolicySet) -> None:
        """Answer by `new` from now on; folders are scanned again if others count now."""
        self._use(new.models)
        if self._latest is None or self._latest.scope != self._scope:
            self._start_scan(Scope.of(new.models))

    async def refreshed(self, policies: PolicySet) -> Names:
        """The names under `policies`, once the folders that they name have been scanned.

        They need not be in force: then nothing else changes by it.
        """
        return await self._by_scan(policies, math.inf)

    async def rescanned(self, policies: PolicySet) -> Names:
        """As `refreshed`, by a scan that begins now: a folder was added or removed."""
        running = self._scans.get(Scope.of(policies.models))
        if running is not None:
            await asyncio.wait([running])
        return await self._by_scan(policies, 0.0)

    async def cards(self, policies: PolicySet) -> list[ModelCard]:
        """Every model by name, the unavailable ones included, the guide last."""
        return list((await self._by_scan(policies, FRESH_SECONDS)).cards.values())

    def known(self) -> list[ModelCard]:
        """As `cards`, from the last scan."""
        if self._latest is None or self._models is None:
            return []
        return list(self._view(self._latest, self._models).cards.values())

    def unavailable(self) -> list[ModelCard]:
        """Of those, the ones that are to be used and cannot be. Where there are any, or some that
        are not served as they should be, and the last scan is old, another begins: whoever asks
        next is told what was mended.
        """
        known = self.known()
        found = [card for card in known if card.unavailable and not card.foreign]
        wrong = found or any(card.outdated or card.held or card.undrafted for card in known)
        if wrong and self._scope is not None and self._age(self._scope) > STALE_SECONDS:
            self._start_scan(self._scope)
        return found

    def find(self, name: str, policies: PolicySet) -> ModelCard | None:
        """As `resolve`, without waiting: None also while that cannot be known yet."""
        if self._latest is None:
            return None
        return self._view(self._latest, policies.models).find(name)

    def default(self, policies: PolicySet) -> str:
        """The name of the model that `default` means now."""
        card = self.find(DEFAULT, policies)
        return card.name if card is not None else GUIDE

    async def resolve(
        self, name: str, policies: PolicySet, caller: Caller | None = None
    ) -> ModelCard:
        """The model that `name` means, to be loaded: where policy wants every byte checked, that
        is waited for. Raises ModelNotFound, or ModelLoadFailed if unusable.
        """
        card = await self.look_up(name, policies, caller)
        if policies.models.defaults.verify == "sha256":
            if caller is not None:
                rights_of(caller, card, policies).check_model()
            try:
                damage = await self._checksums.damage(card)
            except (OutOfFiles, NoThread) as error:
                raise _unread(error) from error
            if damage:
                raise _unusable(card.name, damage)
        return card

    async def check(self, card: ModelCard, policies: PolicySet) -> ModelCard:
        """Look at a model's files again, just before a worker maps them: a scan may be seconds old,
        and who loads it again after hours has the card of then. Returns the card of now.

        Raises ModelLoadFailed; Overloaded where that cannot be done now.
        """
        if policies.models.defaults.verify == "none":
            return card
        try:
            found = await self._threads.run(read_card, Path(card.path), card.name)
            adapter, template = await self._adapter(card), await self._template(card)
        except (OutOfFiles, NoThread) as short:
            raise _unread(short) from short
        reasons = (
            (found.unavailable or found.flaw, ""),
            (adapter.unavailable if adapter is not None else "", "adapter"),
            (
                template.unavailable if template is not None and template.missing else "",
                "chat_template",
            ),
        )
        for reason, setting in reasons:
            if reason:
                self._start_scan(Scope.of(policies.models))
                error = _unusable(card.name, reason)
                error.final = error.of_files = True
                error.setting = setting
                raise error
        if card.held:
            return card
        now = with_files(card, found, adapter)
        if now.digest != card.digest:
            self._start_scan(Scope.of(policies.models))
        return now

    async def _adapter(self, card: ModelCard) -> Adapter | None:
        """As it is now. Raises OutOfFiles, NoThread."""
        if not card.adapter:
            return None
        return await self._threads.run(read_adapter, Path(card.adapter))

    async def _template(self, card: ModelCard) -> Template | None:
        """The file that takes the place of its own. Raises OutOfFiles, NoThread."""
        if not card.template_file:
            return None
        return await self._threads.run(read_template, Path(card.template_file))

    async def look_up(
        self, name: str, policies: PolicySet, caller: Caller | None = None
    ) -> ModelCard:
        """As `resolve`, to be shown only: no file is read for it beyond a scan. Where there is no
        such model, `caller` is told of others that it may use; None: an administrator, of all. What
        is wrong with one that it may not use it is not told: raises Forbidden.
        """
        card = self.find(name, policies)
        if self._scope is not None and self._age(self._scope) > STALE_SECONDS:
            self._start_scan(self._scope)
        if card is None or card.unavailable:
            names = await self._by_scan(policies, FRESH_SECONDS)
            card = names.find(name)
            if card is None:
                raise _not_found(name, names, policies, caller)
        if card.unavailable:
            if caller is not None:
                rights_of(caller, card, policies).check_model()
            error = _unusable(card.name, card.unavailable)
            if card.fault:
                blame(error, card.fault, card, policies)
            raise error
        return card

    async def _by_scan(self, policies: PolicySet, max_age: float) -> Names:
        """The names by a scan for `policies` that ended in the last `max_age` seconds."""
        if self._models is None:
            self._use(policies.models)
        scope = Scope.of(policies.models)
        scan = self._latest
        if scan is None or self._age(scope) >= max_age:
            self._start_scan(scope)
            scan = await asyncio.shield(self._scans[scope])
        return self._view(scan, policies.models)

    def _use(self, models: Models) -> None:
        if models is not self._models:
            self._models = models
            self._scope = Scope.of(models)
            self._views.clear()

    def _age(self, scope: Scope) -> float:
        """Seconds since the last scan of `scope`; inf if the last was for another."""
        if self._latest is None or self._latest.scope != scope:
            return math.inf
        return self._clock.monotonic() - self._latest.at

    def _view(self, scan: Scan, models: Models) -> Names:
        named, changes = self._names(), (self._predecessors.changes, self._checksums.damaged)
        if scan is not self._latest:
            return self._named_by(scan, models, named)
        if named is not self._named or changes != self._known_changes:
            self._views.clear()
            self._named, self._known_changes = named, changes
        names = self._views.get(id(models))
        if names is None:
            if len(self._views) >= _VIEWS:
                self._views.clear()
            names = self._named_by(scan, models, named)
            self._views[id(models)] = names
        return names

    def _named_by(self, scan: Scan, models: Models, named: Mapping[str, OwnName]) -> Names:
        known, served = self._checksums.known, self._predecessors.settled
        return Names(scan, models, self._default, named, known, served=served)

    def _start_scan(self, scope: Scope) -> None:
        """At most one per scope at a time: one that hangs holds up no other."""
        if scope not in self._scans:
            scan = asyncio.create_task(self._rescan(scope), name="scan of models")
            self._scans[scope] = scan
            scan.add_done_callback(lambda scan: self._scanned(scope, scan))

    def _scanned(self, scope: Scope, scan: asyncio.Task[Scan]) -> None:
        del self._scans[scope]
        error = None if scan.cancelled() else scan.exception()
        if error is not None:  # whoever waits for it is told so too
            log.error("folders of models are not scanned: %s", error)

    async def _rescan(self, scope: Scope) -> Scan:
        try:
            finds = await self._threads.run(self._scanner.read, scope)
        except (OutOfFiles, NoThread) as error:
            if self._latest is not None and self._latest.scope == scope:
                return self._latest
            raise _unread(error) from error
        scan = Scan(scope, self._clock.monotonic(), finds)
        if scope == self._scope and self._models is not None:
            before, self._latest = self._latest, scan
            if before is None or before.scope != scope or before.found is not finds:
                self._views.clear()
            self._default = self._view(scan, self._models).default
        return scan


def _unread(short: OutOfFiles | NoThread) -> Overloaded:
    files = isinstance(short, OutOfFiles)
    why = "the daemon can open no more files" if files else "the system has no thread for it"
    return Overloaded(
        f"{why}, so it cannot read its folders of models",
        retry_after=1.0,
        would_pass="the same request once connections or models have gone",
    )


def _unusable(name: str, why: str) -> ModelLoadFailed:
    return ModelLoadFailed(
        f"model '{name}' cannot be used: {why}",
        would_pass="the same request once its files are mended",
    )


def _not_found(
    name: str, names: Names, policies: PolicySet, caller: Caller | None
) -> ModelNotFound:
    def told_of(card: ModelCard) -> bool:
        return caller is None or rights_of(caller, card, policies).allowed

    wanted = canonical(name)
    chains = {canonical(chain): (chain, links) for chain, links in policies.models.chains.items()}
    if wanted in chains:
        chain, links = chains[wanted]
        return ModelNotFound(
            name,
            ": none of its chain is there; add one that is"
            if links
            else f": its chain is empty; add to models.yaml `chains: {{{chain}: [MODEL]}}`",
            policy=policies.line(dotted(("models", "chains", chain))),
        )
    if several := names.candidates(name, told_of):
        named, more = several[:_CANDIDATES], len(several[_CANDIDATES:])
        meant = " or ".join([*named, f"one of {more} more"] if more else named)
        return ModelNotFound(name, f": it may be {meant}; ask by a whole name, or declare an alias")
    near = ", ".join(names.near(name, told_of))
    return ModelNotFound(name, f"; did you mean {near}?" if near else "")
