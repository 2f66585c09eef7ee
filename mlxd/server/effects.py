"""What a change of policies would do to what runs now, in words; `mlxd policy plan` shows it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from mlxd.control.admission import Admission
from mlxd.control.catalog import Catalog
from mlxd.control.effects import effects as effects_on_models
from mlxd.control.keys import Keys
from mlxd.control.residency import Residency
from mlxd.core.counts import form, plural
from mlxd.core.instance import authority
from mlxd.policy.diff import Change, touches
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.store import PrepareFailed
from mlxd.server.listener import Listener

Changes = tuple[Change, ...]
_SCAN_SECONDS = 10.0
"""For the folders of models to be looked at; a disk may hang."""


class Effects:
    """Looks at the running parts; changes nothing."""

    def __init__(
        self,
        listener: Listener,
        admission: Admission,
        catalog: Catalog,
        residency: Residency,
        keys: Keys,
    ) -> None:
        self._listener = listener
        self._admission = admission
        self._catalog = catalog
        self._residency = residency
        self._keys = keys

    async def of(self, old: PolicySet, new: PolicySet, changes: Changes) -> list[str]:
        """One line per consequence, in the order in which a reader would ask."""
        return [
            *await self._on_keys(old, new, changes),
            *self._listening(new, changes),
            *self._admitting(new, changes),
            *await self._on_models(old, new),
            *_waiting(changes),
        ]

    async def _on_models(self, old: PolicySet, new: PolicySet) -> list[str]:
        try:
            async with asyncio.timeout(_SCAN_SECONDS):
                return await effects_on_models(self._catalog, self._residency, old, new)
        except TimeoutError:
            return [
                "a folder of models does not answer: what becomes of loaded models is not known"
            ]

    async def _on_keys(self, old: PolicySet, new: PolicySet, changes: Changes) -> list[str]:
        """Who needs one, and whether there is any for them."""
        told = []
        if new.keys_required and not old.keys_required:
            told.append("every client needs an API key: who sends none that is valid gets 401")
        elif old.keys_required and not new.keys_required:
            told.append("no client needs an API key any more")
        elif touches(changes, "clients.auth.keys_file"):
            told.append("clients are known by the keys of another file")
        try:
            await self._keys.prepare(old, new)  # and left there: only a commit changes anything
        except PrepareFailed as failed:
            told.append(f"as it is it would be refused: {failed.key}: {failed.message}")
        return told

    def _listening(self, new: PolicySet, changes: Changes) -> Iterator[str]:
        if touches(changes, "server.listen.host", "server.listen.port"):
            listen = new.server.listen
            now = ", ".join(self._listener.addresses)
            yield (
                f"a new listener opens on {authority(listen.host, listen.port)}; {now} accepts"
                f" connections for {listen.linger} more, and answers under way finish"
            )
        elif touches(changes, "server.listen.backlog"):
            yield "the listener's backlog changes in place; no connection is touched"

    def _admitting(self, new: PolicySet, changes: Changes) -> Iterator[str]:
        slots = touches(changes, "limits.concurrency.max_in_flight")
        places = touches(changes, "limits.concurrency.max_waiting")
        mode = new.limits.concurrency.mode
        if mode != "enforce" and (slots or places):
            yield (
                f"limits.concurrency.mode is {mode}: whoever finds no slot is served all the same"
            )
            slots = places = False
        if slots:
            yield _on_slots(new, self._admission.active, self._queued)
        if places:
            yield _on_places(new, self._queued)
        if touches(changes, "timeouts.queue"):
            yield (
                f"requests wait up to {new.timeouts.queue} for a slot; those that wait now keep the"
                " time that they came with"
            )
        if touches(changes, "clients.priorities", "clients.tenants") and self._queued:
            go_on = form(self._queued, "one that waits goes", f"{self._queued} that wait go")
            yield f"the {go_on} on in the order of the new weights"
        if touches(changes, "limits.rate_limit"):
            yield "what clients have used of their rate limits stays counted"

    @property
    def _queued(self) -> int:
        return sum(self._admission.waiting.values())


def _on_slots(new: PolicySet, running: int, queued: int) -> str:
    most = new.limits.concurrency.max_in_flight
    words = f"{plural(running, 'request')} {form(running, 'runs', 'run')} now, {most} may"
    over = running - most
    if over >= 0:
        fate = "wait" if new.limits.concurrency.max_waiting else "are refused"
        ended = form(over + 1, "has ended", "have ended")
        return f"{words}: none is stopped, new ones {fate} until {over + 1} {ended}"
    if queued:
        next_ones = min(queued, -over)
        get, wait = form(next_ones, "gets", "get"), form(queued, "waits", "wait")
        return f"{words}: up to {next_ones} of the {queued} that {wait} {get} a slot at once"
    return words


def _on_places(new: PolicySet, queued: int) -> str:
    most = new.limits.concurrency.max_waiting
    words = f"{plural(queued, 'request')} {form(queued, 'waits', 'wait')} now, {most} may"
    if not most:
        fate = "; those that wait stay" if queued else ""
        return f"{words}: who finds no slot is refused at once{fate}"
    if queued >= most:
        over = queued - most + 1
        slots = form(over, "has its slot", "have their slots")
        return f"{words}: none is sent away, new ones are refused until {over} {slots}"
    return f"{words}: who finds no slot waits up to {new.timeouts.queue} for one"


def _waiting(changes: Changes) -> Iterator[str]:
    for change in changes:
        if change.reload == "restart":
            yield f"{change.key} waits for the next start of the daemon"
