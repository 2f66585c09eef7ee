"""The end of a daemon: it drains, then ends its workers and itself. Each stage is told.

Whoever sends requests by /readyz, such as a balancer, needs a moment to hear of it. Until then they
are served, and their answers say `Connection: close`: nothing is refused that could go elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Sequence
from functools import partial

from mlxd.core.counts import plural
from mlxd.core.errors import AFTER_DRAIN, Draining
from mlxd.core.threads import NoThread
from mlxd.daemon.composition import Composition

log = logging.getLogger(__name__)

_FAREWELL_SECONDS = 0.5
_LOOK_SECONDS = 0.02
_LAST_CALL_SECONDS = 0.1
"""For the requests of those who were connected just before nobody could be any more."""
_COMING_SECONDS = 1.0
"""For those of whom it is known that they have connected and not yet asked."""
_JUDGED_SECONDS = 10.0
"""For those that have come and are judged, such as their schemas: before that they take no slot."""
_TIDY_SECONDS = 5.0
"""For what is removed at the end; a disk may hang."""


class Ending:
    """First `drain`, then `end`; `hasten` skips every wait of both."""

    def __init__(self, made: Composition) -> None:
        self._made = made
        self._parts = made.parts
        self._at_once = asyncio.Event()

    def hasten(self) -> None:
        self._at_once.set()

    async def drain(self, *, asked: bool, within: float) -> None:
        """Say so, then refuse new work, and let what runs finish within its grace; end at once
        when told again.

        `asked`: somebody wants this end; else a part was lost. `within`: seconds after which the
        process is over in any case.
        """
        self._parts.state.ready = False
        self._parts.state.draining = True
        self._made.watchdog.stop()  # a drain may take long, and that is no hang
        self._made.systemd.stopping(within)
        self._tell_stage("not_ready", "clients are asked to go elsewhere")
        if asked:
            await self._made.hold.asked_to_end()
        await self._parts.preloader.close()
        await self._made.recovery.close()
        self._made.spares.end()
        await self._parts.puller.close()
        drain = self._parts.policies.current.server.drain
        delay = float(drain.not_ready_delay)
        if self._parts.admission.active or self._is_probed(delay):
            await self._pause(delay)
        await self._made.listener.stop_accepting()
        await self._last_call()
        self._parts.admission.draining = True
        self._tell_stage("closed", "no new connection is accepted, and no new request")
        until = self._parts.clock.monotonic() + float(drain.grace)
        if not await self._all_ended(float(drain.grace)):
            await self._cut_off()
        self._tell_stage("workers", "the workers end once all answers are read")
        await self._end_events()
        await self._all_taken(until)

    async def end(self, lasting: Sequence[asyncio.Task[None]]) -> None:
        """End every part. The tasks in `lasting` go on until no worker is left."""
        self._made.spares.end()
        await self._parts.puller.close()
        await self._end_events()
        await self._made.listener.close()
        killing = asyncio.create_task(self._kill_when_told())
        await self._made.admin.close()
        await self._parts.reloader.close()
        grace = float(self._parts.policies.current.timeouts.shutdown.term_grace)
        await self._parts.guard.close()
        await self._parts.residency.close(grace)
        await self._made.spares.close()
        await self._made.forecasts.close()
        await self._parts.usage.close()
        await self._made.grammars.close()
        killing.cancel()
        for task in lasting:
            task.cancel()
        await asyncio.gather(*lasting, return_exceptions=True)
        await self._remove_temporary()
        await self._parts.records.close()
        self._made.traffic.close()
        self._parts.tracing.close()
        self._made.systemd.close()
        log.info("stopped")

    def _is_probed(self, delay: float) -> bool:
        """Whether somebody goes by /readyz, and may send requests until it has seen this end. Who
        asks more rarely than every `delay` seconds, and some, does not see it in that time anyway.
        """
        probed = self._parts.state.probed
        return probed is not None and self._parts.clock.monotonic() - probed < 2 * delay

    async def _last_call(self) -> None:
        """Serve those who were connected already and are about to ask, and who have asked."""
        await self._pause(_LAST_CALL_SECONDS)
        clock, dispatcher = self._parts.clock, self._parts.dispatcher
        began = clock.monotonic()
        while not self._at_once.is_set():
            expected, passed = await self._is_expected(), clock.monotonic() - began
            coming = expected and passed < _COMING_SECONDS
            if not coming and not (dispatcher.arriving and passed < _JUDGED_SECONDS):
                return
            await self._pause(_LOOK_SECONDS)

    async def _cut_off(self) -> None:
        """What did not finish is told so, loads included."""
        unfinished = plural(self._parts.admission.active, "request")
        self._tell_stage("cancelled", f"{unfinished} did not finish in time")
        policies = self._parts.policies.current
        stopping = Draining(
            "the daemon is stopping",
            retry_after=5.0,
            policy=policies.line("server.drain.grace"),
            numbers={"grace_seconds": float(policies.server.drain.grace)},
            would_pass=AFTER_DRAIN,
        )
        self._parts.replays.fail_all(stopping)
        self._parts.supervisor.fail_all(stopping)
        self._parts.residency.give_up_loads()
        await self._all_ended(_FAREWELL_SECONDS, even_if_told=True)

    def _tell_stage(self, stage: str, words: str) -> None:
        active = self._parts.admission.active
        data = {"stage": stage, "active": active}
        self._parts.events.record("drain", f"stopping: {words}", data)
        self._made.systemd.status(f"stopping, {plural(active, 'request')} under way: {words}")

    async def _all_ended(self, seconds: float, *, even_if_told: bool = False) -> bool:
        """Wait for every request's end; not longer than this, nor when told to end at once."""
        waits = {asyncio.create_task(self._parts.admission.idle())}
        if not even_if_told:
            waits.add(asyncio.create_task(self._at_once.wait()))
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        return not self._parts.admission.active

    async def _all_taken(self, until: float) -> None:
        """Wait for clients that still read their answers, or are about to ask; not longer than
        this, nor when told to end at once.
        """
        listener, clock = self._made.listener, self._parts.clock
        if listener.answering:
            log.info("stopping: answers are still being read")
        while await self._in_use() and not self._at_once.is_set():
            if clock.monotonic() >= until:
                return
            await self._pause(_LOOK_SECONDS)

    async def _in_use(self) -> bool:
        """Whether a client is answered or about to ask: what has come by now is read first."""
        expected = await self._is_expected()
        return expected or bool(self._made.listener.answering)

    async def _is_expected(self) -> bool:
        for _ in range(2):
            await asyncio.sleep(0)
        return bool(self._made.listener.expecting)

    async def _remove_temporary(self) -> None:
        remove = partial(shutil.rmtree, ignore_errors=True)
        with contextlib.suppress(TimeoutError, NoThread):
            async with asyncio.timeout(_TIDY_SECONDS):
                await self._made.threads.run(remove, self._made.temporary)

    async def _pause(self, seconds: float) -> None:
        """Sleep, unless told to end at once."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._at_once.wait()

    async def _end_events(self) -> None:
        """Whoever follows is told the rest, and that it ends."""
        self._made.repeats.close()
        self._parts.rejections.close()
        self._parts.events.close()
        await self._made.webhook.close()

    async def _kill_when_told(self) -> None:
        await self._at_once.wait()
        self._parts.supervisor.kill_all()
