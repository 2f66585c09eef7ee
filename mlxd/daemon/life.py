"""The life of one daemon: it starts its parts, serves, hears signals, and ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path

import uvloop

from mlxd import __version__
from mlxd.control.process import kernels_of
from mlxd.core import traces
from mlxd.core.claim import Claim
from mlxd.core.instance import authority
from mlxd.core.starts import StartLedger
from mlxd.core.tasks import tell_defect, tell_unheard
from mlxd.daemon import heap
from mlxd.daemon.composition import compose, join
from mlxd.daemon.ending import Ending
from mlxd.daemon.file_limit import raise_file_limit
from mlxd.daemon.hold import begun
from mlxd.daemon.log import Log
from mlxd.daemon.presence import Presence
from mlxd.daemon.stops import Stops
from mlxd.policy.boot import Boot
from mlxd.policy.load import Override
from mlxd.policy.outcome import Outcome
from mlxd.server import policy_report
from mlxd.server.port import Bound
from mlxd.server.watchdog import BROKEN, end_process_after

log = logging.getLogger(__name__)

_BROKEN_SECONDS = 20.0
"""For the end of a daemon that has lost a part; then it is over in any case."""


def run(
    boot: Boot,
    claim: Claim,
    bound: Bound,
    *,
    overrides: Sequence[Override] = (),
    find_folder: Callable[[], Path | None] = lambda: None,
    warnings: Sequence[str] = (),
    ready_file: int | None = None,
    log: Log,
) -> int:
    """Serve until stopped; returns the exit status.

    `claim` is taken by the caller. `ready_file` gets one line as soon as the daemon is ready,
    and is closed.
    """
    traces.install()
    stops = Stops(boot.store)
    stops.hear()
    warnings = [*warnings, *raise_file_limit()]
    starts = begun(boot.store.current, claim.state)

    async def serve() -> int:
        asyncio.get_running_loop().set_exception_handler(tell_unheard)
        daemon = Daemon(
            boot, claim, starts, stops,
            overrides=overrides, find_folder=find_folder, warnings=warnings, kept=log,
        )  # fmt: skip
        return await daemon.serve(bound, ready_file)

    status: int = uvloop.run(serve())
    return status


class Daemon:
    """One running mlxd."""

    def __init__(
        self,
        boot: Boot,
        claim: Claim,
        starts: StartLedger,
        stops: Stops,
        *,
        overrides: Sequence[Override] = (),
        find_folder: Callable[[], Path | None] = lambda: None,
        warnings: Sequence[str] = (),
        kept: Log,
    ) -> None:
        self._log = kept
        self._stops = stops
        self._made = compose(
            boot, claim, starts,
            overrides=overrides, find_folder=find_folder, warnings=warnings, moved=self._moved,
        )  # fmt: skip
        self._parts = self._made.parts
        self._ending = Ending(self._made)
        self._status = 0
        self._stop = asyncio.Event()
        self._following = False
        self._told_early = False
        """A SIGHUP came while the daemon was starting."""
        self._presence = Presence(
            claim, self._made.admin, self._made.threads, self._parts.state.warnings
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._wakes: list[asyncio.Task[None]] = []
        """They outlast the drain."""

    async def serve(self, bound: Bound, ready_file: int | None = None) -> int:
        """Serve on bound sockets until a signal says stop; then drain and end every worker.

        Returns the exit status: 0, or `BROKEN` after the loss of a part.
        """
        self._hear_signals()
        beating = asyncio.create_task(self._made.heartbeat.run(), name="heartbeat")
        beating.add_done_callback(self._lost)
        join(self._made, self._log)
        self._parts.reloader.observe(self._tell_outcome)
        self._watch_sleep()
        self._parts.records.start()
        self._made.webhook.start()
        listen = self._parts.policies.current.server.listen
        port = bound.socks[0].getsockname()[1]
        self._presence.bind()
        await self._presence.announce(listen.host, port)
        self._made.listener.open(bound, listen)
        self._parts.state.ready = True
        self._greet(authority(listen.host, port))
        await self._parts.reloader.begin()
        self._made.admin.serve()
        if not self._stop.is_set():  # else a signal came while it was starting
            self._follow_edits()
        self._own(self._presence.keep(), "presence")
        self._own(self._tidy())
        self._own(heap.keep_small(self._made.threads))
        self._own(self._parts.archive.run())
        self._own(self._parts.usage.run())
        self._tell_ready(ready_file)
        self._made.watchdog.start()
        try:
            await self._stop.wait()
            self._forget_edits()
            asked = self._status != BROKEN
            within = self._stops.patience() if asked else _BROKEN_SECONDS
            await self._ending.drain(asked=asked, within=within)
        finally:
            self._forget_edits()
            await self._ending.end(self._wakes)
        return self._status

    # -- the start

    def _hear_signals(self) -> None:
        self._stops.tell(self._signalled)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self._told_to_reload)

    def _watch_sleep(self) -> None:
        """The machine's: what to do after one, and that none comes in the middle of work."""
        self._made.grace.on_wake = self._woke
        self._wakes = [
            asyncio.create_task(self._made.grace.run(), name="wake"),
            asyncio.create_task(self._made.caffeinate.run(), name="caffeinate"),
        ]

    def _greet(self, address: str) -> None:
        policies = self._parts.policies.current
        urls = _urls([address, *self._made.listener.addresses[1:]])
        log.info(
            "mlxd %s serves on %s, pid %s, policies from %s",
            __version__, urls, os.getpid(), policies.folder or "built-in defaults",
        )  # fmt: skip
        warnings = [*self._parts.state.warnings, *self._parts.unread.words]
        warnings += policy_report.warnings(self._parts, policies)
        for warning in warnings:
            log.warning("%s", warning)

    def _tell_ready(self, file: int | None) -> None:
        """Whoever started it: connections are accepted."""
        self._made.systemd.ready(self._serving())
        if file is not None:
            with contextlib.suppress(OSError):  # nobody reads it
                os.write(file, b"\n")
            os.close(file)

    async def _tidy(self) -> None:
        """Remove what earlier runs have left."""
        await self._parts.puller.tidy()
        await self._parts.library.tidy(self._parts.policies.current)
        await self._made.threads.run(kernels_of(self._made.temporary).tidy)

    # -- meanwhile

    def _serving(self) -> str:
        """For `systemctl status`."""
        generation = self._parts.policies.current.generation
        refused = "" if self._parts.reloader.last.ok else "; the last edit of them is refused"
        urls = _urls(self._made.listener.present_addresses)
        return f"serving on {urls}, policies generation {generation}{refused}"

    def _tell_outcome(self, outcome: Outcome) -> None:
        """Of an attempt that nobody waits for."""
        if outcome.trigger not in ("start", "signal") and not self._stop.is_set():
            self._made.systemd.status(self._serving())

    def _follow_edits(self) -> None:
        """From here on; a signal that came before is answered now."""
        self._following = True
        if self._told_early:
            self._told_to_reload()
        self._depend_on(self._parts.watcher.run(), "policy watcher")
        self._depend_on(self._parts.keys.follow(), "keys")
        self._depend_on(self._made.vitals.run(), "vitals")
        self._depend_on(self._made.recovery.run(), "recovery")
        self._own(self._made.spares.run(), "keeping of spares")  # no daemon ends for want of them
        self._parts.guard.start(self._lost)
        self._own(self._made.hold.follow())
        self._parts.preloader.start(self._parts.policies.current)

    def _forget_edits(self) -> None:
        """A daemon that stops follows no more edits."""
        for task in self._tasks:
            task.cancel()

    def _moved(self, host: str, port: int) -> None:
        self._own(self._presence.announce(host, port))

    def _woke(self, seconds: float) -> None:
        """Nothing was done for so long."""
        words = f"awake again after {seconds:.0f} s"
        self._parts.events.record("wake", words, {"slept_seconds": round(seconds, 1)})
        self._own(self._made.vitals.wake())

    # -- signals

    def _signalled(self, number: signal.Signals) -> None:
        if self._stop.is_set():
            log.warning("%s again: stopping at once", number.name)
            self._ending.hasten()
        else:
            log.info("%s: draining", number.name)
            self._stop.set()

    def _told_to_reload(self) -> None:
        if not self._following:
            self._told_early = True
        elif not self._stop.is_set():
            self._own(self._reload_on_signal())

    async def _reload_on_signal(self) -> None:
        """SIGHUP. systemd waits for the outcome."""
        self._made.systemd.reloading()
        status = "the reload failed"
        try:
            status = str(await self._parts.reloader.reload("signal"))
        finally:
            self._made.systemd.ready(f"{status}; {self._serving()}")

    # -- tasks

    def _own(self, work: Coroutine[None, None, None], name: str | None = None) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(tell_defect)

    def _depend_on(self, work: Coroutine[None, None, None], name: str) -> None:
        """Run it until the daemon stops; the daemon does not go on without it."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(self._lost)

    def _lost(self, task: asyncio.Task[None]) -> None:
        """The daemon ends, for its service manager to start it anew."""
        if self._stop.is_set():
            return
        error = None if task.cancelled() else task.exception()
        log.critical("the %s has ended: so does the daemon", task.get_name(), exc_info=error)
        self._status = BROKEN
        end_process_after(_BROKEN_SECONDS)
        self._ending.hasten()
        self._stop.set()


def _urls(addresses: Sequence[str]) -> str:
    return " and ".join(f"http://{address}" for address in addresses)
