"""The right to run: performs what the scheduler decides, with a clock, futures and counts.

A slot is held until the last token, the cancel or the error. What waits for one is a coroutine in
`admit`; if it is cancelled there, its place is free at once.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from copy import copy
from typing import Literal

from mlxd.control.again import Refusals
from mlxd.control.applicant import Applicant
from mlxd.control.place import Place
from mlxd.control.queue_view import OnWait, QueueView
from mlxd.control.quotas import Quotas
from mlxd.control.rates import Rates, RateState, WouldDeny
from mlxd.control.scheduler import Scheduler
from mlxd.control.shedding import Strain
from mlxd.control.slots import Scene
from mlxd.control.ticket import Ticket, Waiter
from mlxd.control.totals import Totals
from mlxd.core.caller import Caller, Priority
from mlxd.core.clock import Clock
from mlxd.core.errors import AFTER_DRAIN, WRONG, Draining, MlxdError, Overloaded
from mlxd.core.story import Story
from mlxd.policy.load import load
from mlxd.policy.policy_set import PolicySet

_TELL_SECONDS = 1.0
"""Between two times that those who wait are told of a change."""


class _AllInMemory:
    """For those to whom it does not matter which models are."""

    def in_memory(self, model: str) -> bool:
        return True

    def delays_others(self, model: str) -> bool:
        return False


def _unheard(rule: str) -> None:
    """For callers to whom it does not matter which rules would have refused."""


class Admission:
    """Says who may run now. Decides on the event loop without awaiting, so a decision is atomic.

    `apply` tells it the policies in force; until then they are those it was made with.
    """

    def __init__(
        self,
        clock: Clock,
        policies: PolicySet | None = None,
        scene: Scene | None = None,
        quotas: Quotas | None = None,
        *,
        real: Clock | None = None,
    ) -> None:
        """`policies`: None is the built-in defaults. `scene`: None is a world in which every model
        is in memory. `real`: the clock that rates and quotas go by, because clients do: what passes
        while the daemon is stopped is not lost on it.
        """
        self._clock = clock
        self._real = real or clock
        self._rates = Rates()
        self._quotas = quotas or Quotas()
        policies = policies or load()
        self.scheduler = Scheduler(policies, scene or _AllInMemory(), self._rates, self._quotas)
        self._tickets: set[Ticket] = set()
        self._waiters: dict[Place, Waiter] = {}
        self._view = QueueView(self.scheduler)
        self._empty = asyncio.Event()
        self._empty.set()
        self._expiry: asyncio.TimerHandle | None = None
        self._expires = 0.0
        """When the timer is to look."""
        self._telling: asyncio.TimerHandle | None = None
        self._draining = False
        self._shut: MlxdError | None = None
        self.totals = Totals()
        self._refusals = Refusals(self._rates, self.totals, self._real)

    # -- a request's way

    @asynccontextmanager
    async def admit(
        self,
        applicant: Applicant,
        would_deny: WouldDeny = _unheard,
        *,
        story: Story | None = None,
        on_wait: OnWait | None = None,
    ) -> AsyncIterator[Ticket]:
        """Hold a slot for the length of the block, having waited for it as long as policy lets it.

        Raises what `Scheduler.ask` raises, QueueTimeout, Draining, and what admission is shut for.
        A request that turns out to be wrong in itself does not count towards the client's rate.
        `on_wait` is told when it begins to wait, and now and then how it stands.
        """
        if story is not None:
            _tell_asked(story, applicant)
        ticket = self._asked(applicant, would_deny)
        place = ticket.place
        try:
            if place.started is None:
                await self._slot(ticket, story, on_wait)
            self._tell_story(place, story)
            ticket.entered = True
            yield ticket
        except WRONG:
            self.leave(ticket, refund=True)
            raise
        finally:
            if story is not None:
                story.released = story.now
            self.leave(ticket)

    def enter(self, applicant: Applicant, would_deny: WouldDeny = _unheard) -> Ticket:
        """Take a slot that is free now, to be given back by `leave`. Raises what `admit` raises,
        and Overloaded where that would wait.
        """
        ticket = self._asked(applicant, would_deny)
        if ticket.place.started is None:
            self.leave(ticket)
            raise Overloaded("no slot is free (server busy, please try again)", retry_after=1.0)
        ticket.entered = True
        return ticket

    def leave(self, ticket: Ticket, refund: bool = False) -> None:
        """Give the slot back, and with `refund` the place in the client's rates; once is enough."""
        if ticket not in self._tickets:
            return
        self._tickets.discard(ticket)
        place = ticket.place
        self._view.end(place)
        waiter = self._waiters.pop(place, None)
        if waiter is not None:
            waiter.cancel()
        if ticket.entered:
            self.totals.note_ended()
        now, waited = self._clock.monotonic(), place.started is None
        self.scheduler.leave(
            place,
            now,
            self._clock.wall(),
            tokens=ticket.tokens,
            took=ticket.took,
            used=ticket.entered,
            refund=refund,
            real=self._real.monotonic(),
        )
        if waited:
            self._looked(now)  # it makes room in the queue, but lets nobody in
        else:
            self.look()

    def look(self) -> None:
        """Something has changed that may let somebody in, or end a wait."""
        now = self._clock.monotonic()
        for place, error in self.scheduler.expire(now):
            self.totals.note_expired()
            self._end_wait(place, error)
        for place in self.scheduler.turn(now):
            self._end_wait(place)
        self._looked(now)

    def measured(self, ttft: float | None, gap: float | None) -> None:
        """How fast an answer is: seconds to its first token, or between two tokens."""
        if self.scheduler.adaptive.observe(self._clock.monotonic(), ttft=ttft, gap=gap):
            self.look()

    def apply(self, policies: PolicySet) -> None:
        """New policies are in force. Cannot fail; stops nothing that is under way.

        With a lower limit nobody is let in until enough have ended; a higher one lets in who
        waits. What rates have counted survives (Rates.apply).
        """
        self.scheduler.apply(policies)
        self.look()

    def refresh(self, same: PolicySet) -> None:
        """The same values in other places: what is told from now on names those."""
        self.scheduler.refresh(same)

    # -- closing

    @property
    def draining(self) -> bool:
        """The daemon is stopping: nobody is let in, and nobody waits."""
        return self._draining

    @draining.setter
    def draining(self, draining: bool) -> None:
        self._draining = draining
        self._refusals.changed()
        if draining:
            self._turn_away(_stopping)

    def shut(self, error: MlxdError | None) -> None:
        """While it is set, every new generation and load raises it, and so do those that wait;
        what runs goes on.
        """
        self._refusals.changed()
        self._shut = self.scheduler.shut = error
        if error is not None:
            self._turn_away(lambda: copy(error))

    def strain(self, strain: Strain | None) -> None:
        """While it is set, new generations of the classes whose `shed_at` is reached are refused;
        what waits or runs goes on.
        """
        self.scheduler.shedding.strain = strain
        self.look()

    async def idle(self) -> Literal[True]:
        """Wait until no request is admitted, and none waits."""
        return await self._empty.wait()

    def check_open(self) -> None:
        """Raises Draining, or what admission is shut for."""
        if self._draining:
            raise _stopping()
        if self._shut is not None:
            raise copy(self._shut)

    # -- what there is

    @property
    def active(self) -> int:
        return self.scheduler.active

    def active_by_model(self) -> Counter[str]:
        return Counter(self.scheduler.active_by_model)

    @property
    def waiting(self) -> dict[Priority, int]:
        return self.scheduler.waiting

    @property
    def free_slots(self) -> int:
        return self.scheduler.free_slots

    @property
    def slots(self) -> int:
        """That there are now: max_in_flight, or fewer."""
        return self.scheduler.slots

    def expected_wait(self, klass: Priority) -> float:
        """Seconds until one more of this class would get a slot; 0: at once."""
        return self.scheduler.expected_wait(klass)

    def rate_states(self, caller: Caller, policies: PolicySet, user: str = "") -> list[RateState]:
        """What each rate rule and quota leaves a client."""
        now, wall = self._real.monotonic(), self._real.wall()
        rates = self._rates.states(caller, policies, now, user)
        return [*rates, *self._quotas.remaining(caller, policies, now, wall)]

    @property
    def refused(self) -> Counter[str]:
        """Refusals by rule; see `rules_in_force` for their names."""
        return self.totals.refused

    @property
    def would_deny(self) -> Counter[str]:
        """What rules in mode dry_run would have refused."""
        return self.totals.would_deny

    # -- inside

    def _asked(self, applicant: Applicant, would_deny: WouldDeny) -> Ticket:
        if self._draining:
            raise _stopping()

        def noted(rule: str) -> None:
            self.totals.would_deny[rule] += 1
            would_deny(rule)

        clock, real = self._clock, self._real
        if self.scheduler.adaptive.look(clock.monotonic()):
            self.look()  # those that wait come first, and who was refused may be let in now
        try:
            place = self.scheduler.ask(
                applicant, clock.monotonic(), clock.wall(), noted, real=real.monotonic()
            )
        except MlxdError as error:
            self.totals.note_turned_away(error, applicant)
            error.again = self._refusals.again(error, applicant)
            raise
        ticket = Ticket(place, self._loaded)
        self._tickets.add(ticket)
        self._empty.clear()
        self.totals.note_came(place)
        return ticket

    async def _slot(self, ticket: Ticket, story: Story | None, on_wait: OnWait | None) -> None:
        """Wait for it. Raises what ends the wait."""
        place, now = ticket.place, self._clock.monotonic()
        waiter = self._waiters[place] = Waiter(lambda: self.leave(ticket))
        view = self._view.of(place)
        if story is not None:
            story.priority, story.cost = place.klass, place.cost
            line = self.scheduler.policies.line(place.waits_for)
            story.note(
                "queued",
                position=view.position,
                expected_wait=round(view.expected_wait, 3),
                policy=line.key,
                value=line.value,
                place=line.place,
            )
        if on_wait is not None:
            self._view.begin(place, on_wait, view)
        self._arm(now)
        await waiter

    def _end_wait(self, place: Place, error: MlxdError | None = None) -> None:
        """It has its slot, or is told why not."""
        self._view.end(place)
        waiter = self._waiters.pop(place, None)
        if error is None:
            self.totals.note_started(place)
        if waiter is None:
            return
        if error is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(error)

    def _turn_away(self, why: Callable[[], MlxdError]) -> None:
        """All that wait."""
        now, wall = self._clock.monotonic(), self._clock.wall()
        for place in self.scheduler.places_waiting():
            self.scheduler.leave(place, now, wall)
            error = why()
            self.totals.note_turned_away(error, place.applicant)
            self._end_wait(place, error)
        self.look()

    def _loaded(self, place: Place) -> None:
        self.scheduler.loaded(place)
        self.look()

    def _tell_story(self, place: Place, story: Story | None) -> None:
        if story is None:
            return
        waited = (place.started or place.came) - place.came
        story.priority, story.cost = place.klass, place.cost
        story.rated, story.admitted = place.applicant.rated, (story.judged or 0.0) + waited
        story.note("admitted", waited=round(waited, 3), slots=self.scheduler.slots)

    def _looked(self, now: float) -> None:
        """Who runs and who waits has changed, or may have."""
        self._refusals.changed()
        self._arm(now)
        if not self._tickets:
            self._empty.set()

    # -- time

    def _arm(self, now: float) -> None:
        """Have somebody look when the next wait is over, and tell those who wait."""
        at = self.scheduler.next_expiry()
        if self._expiry is not None and (at is None or at < self._expires):
            self._expiry.cancel()
            self._expiry = None
        if at is not None and self._expiry is None:
            self._expires = at
            loop = asyncio.get_running_loop()
            self._expiry = loop.call_later(max(0.0, at - now), self._expired)
        if len(self._view) and self._telling is None:
            loop = asyncio.get_running_loop()
            self._telling = loop.call_later(_TELL_SECONDS, self._tell_waiting)

    def _expired(self) -> None:
        self._expiry = None
        self.look()

    def _tell_waiting(self) -> None:
        self._telling = None
        now = self._clock.monotonic()
        self._view.tell()
        self._arm(now)


def _tell_asked(story: Story, applicant: Applicant) -> None:
    """What it is judged by, before it is."""
    story.judged, story.wished, story.priority = story.now, applicant.priority, applicant.klass
    story.cost, story.rated, story.user = applicant.cost, applicant.rated, applicant.user


def _stopping() -> Draining:
    return Draining("the daemon is stopping", retry_after=5.0, would_pass=AFTER_DRAIN)
