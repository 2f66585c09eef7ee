"""The composition root: makes the parts, joins them, runs them, ends them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import shutil
import signal
import socket
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path

import sdnotify
import uvloop

from mlxd import __version__
from mlxd.control.admission import Admission
from mlxd.control.caffeinate import Caffeinate
from mlxd.control.catalog import Catalog
from mlxd.control.dispatch import Dispatcher
from mlxd.control.forecast import Forecasts
from mlxd.control.guard import Guard
from mlxd.control.leftovers import end_leftovers
from mlxd.control.library import Library
from mlxd.control.memory import read_memory
from mlxd.control.monitors import Monitors
from mlxd.control.own_names import OwnNames
from mlxd.control.preload import Preloader
from mlxd.control.pressure import OomKills, read_pressure
from mlxd.control.pull import Puller
from mlxd.control.pulled import PulledModels
from mlxd.control.recovery import Recovery
from mlxd.control.replay import Replays
from mlxd.control.residency import Residency
from mlxd.control.sleep import Grace
from mlxd.control.supervisor import Supervisor
from mlxd.control.vitals import Vitals
from mlxd.control.watermarks import Level
from mlxd.core.clock import AwakeClock, Clock, SystemClock
from mlxd.core.errors import Draining, StartsHeld
from mlxd.core.instance import Address, Instance, authority
from mlxd.core.starts import StartLedger
from mlxd.core.threads import Threads
from mlxd.policy.boot import Boot
from mlxd.policy.history import history_of
from mlxd.policy.load import Override, PolicySet
from mlxd.policy.outcome import Outcome
from mlxd.policy.reload import Reloader
from mlxd.policy.store import Live
from mlxd.policy.watch import Watcher
from mlxd.server import memory_report, policy_report, worker_report
from mlxd.server.admin import Admin
from mlxd.server.admin_socket import AdminSocket
from mlxd.server.app import routes
from mlxd.server.connections import GuardedServer
from mlxd.server.edge import Edge
from mlxd.server.effects import Effects
from mlxd.server.listener import Listener
from mlxd.server.parts import Parts, State
from mlxd.server.watchdog import (
    BROKEN,
    Heartbeat,
    Watchdog,
    end_process,
    end_process_after,
    told_by_systemd,
)
from mlxd.server.webhook import Webhook
from mlxd.telemetry import logs
from mlxd.telemetry.events import Events
from mlxd.telemetry.flight import last_run
from mlxd.telemetry.logs import one_line
from mlxd.telemetry.metrics import Metrics
from mlxd.telemetry.records import Records
from mlxd.telemetry.rejections import Rejections

log = logging.getLogger(__name__)

GUIDE = Path(__file__).parent / "guide"
_FAREWELL_SECONDS = 0.5
_BROKEN_SECONDS = 20.0
"""For the end of a daemon that has lost a part; then it is over in any case."""
_HELD_RETRY_SECONDS = 60.0
_NOTE_SECONDS = 1.0
"""For a word on the disk at the end; a disk may hang."""


class Daemon:
    """One running mlxd."""

    def __init__(
        self,
        boot: Boot,
        instance: Instance,
        starts: StartLedger,
        *,
        overrides: Sequence[Override] = (),
        find_folder: Callable[[], Path | None] = lambda: None,
        warnings: Sequence[str] = (),
    ) -> None:
        self._instance = instance
        self._temporary = _fresh_temporary(instance.state)
        machine = SystemClock()
        clock = AwakeClock(machine)
        store = boot.store
        history = history_of(instance.state)
        self._reloader = Reloader(
            store, history, clock, boot, overrides=overrides, find_folder=find_folder
        )
        last = last_run(instance.state)
        metrics, events = Metrics(), Events(clock, last.ids_after(clock))
        pulled = PulledModels(instance.state / "models")
        own_names = OwnNames(instance.state / "models.d")
        catalog = Catalog(GUIDE, clock, pulled=pulled.folder, names=own_names)
        admission = Admission(machine)  # windows of rates are what clients count too
        self._supervisor = Supervisor(clock, self._temporary, store.current, counts=metrics)
        self._supervisor.on_event = events.record
        self._forecasts = Forecasts(instance.state, clock)
        self._residency = Residency(
            self._supervisor, clock, read_memory, self._forecasts, check=catalog.check
        )
        self._grace = Grace(clock, lambda: float(store.current.supervision.sleep_wake.resume_grace))
        self._residency.calm = self._grace.calm
        self._vitals = Vitals(self._supervisor, clock, store.current, self._grace.calm)
        self._preloader = Preloader(catalog, self._residency)
        self._recovery = Recovery(
            self._supervisor, self._residency, clock,
            lambda: store.current, self._preloader.keeps,
        )  # fmt: skip
        self._guard = _guard(
            store.current, self._residency, admission, clock=clock, events=events, metrics=metrics
        )
        self._records = Records(
            instance.state, clock, events, last,
            workers=self._residency.workers, available=_available_memory,
        )  # fmt: skip
        self._residency.on_work = self._records.flight.changed
        self._webhook = Webhook(store.current, events, metrics.webhook_post)
        self._replays = _replays(clock, self._guard, events=events, metrics=metrics)
        self._caffeinate = Caffeinate(
            clock, lambda: store.current.supervision.sleep_wake.prevent_idle_sleep, self._works
        )
        self._starts = starts
        self._residency.before_load = self._before_load
        self._puller = Puller(pulled, own_names, catalog, events.record)
        library = Library(catalog, self._residency, self._puller, pulled, own_names, events.record)
        self._parts = Parts(
            policies=store,
            reloader=self._reloader,
            watcher=Watcher(lambda: self._reloader.folder, self._reloader.look),
            catalog=catalog,
            admission=admission,
            supervisor=self._supervisor,
            residency=self._residency,
            preloader=self._preloader,
            guard=self._guard,
            dispatcher=Dispatcher(catalog, admission, self._residency, self._replays, clock=clock),
            replays=self._replays,
            puller=self._puller,
            library=library,
            clock=clock,
            read_memory=read_memory,
            metrics=metrics,
            events=events,
            rejections=Rejections(events),
            records=self._records,
            state=State(warnings=list(warnings)),
            starts=starts,
        )
        server = GuardedServer(Edge(self._parts, routes(self._parts)), store, clock)
        self._listener = Listener(server, self._moved)
        admin = Admin(
            self._parts,
            history,
            Effects(self._listener, admission, catalog, self._residency),
            self._reset_starts,
        )
        edge = Edge(self._parts, admin.routes(), walls=False)
        self._admin = AdminSocket(GuardedServer(edge, store, clock, limited=False), instance.state)
        self._heartbeat, self._watchdog = self._watched(machine, metrics)
        self._status = 0
        self._stop = asyncio.Event()
        self._at_once = asyncio.Event()
        self._following = False
        self._told_early = False
        """A SIGHUP came while the daemon was starting."""
        self._announcing = asyncio.Lock()
        self._threads = Threads("state")
        self._tasks: set[asyncio.Task[None]] = set()
        self._wakes: list[asyncio.Task[None]] = []
        """They outlast the drain."""

    def _watched(self, clock: Clock, metrics: Metrics) -> tuple[Heartbeat, Watchdog]:
        within = float(self._parts.policies.current.supervision.daemon.watchdog)
        systemd = told_by_systemd(os.environ, os.getpid())
        heartbeat = Heartbeat(
            clock,
            within,
            metrics.loop_lag,
            _tell_alive if systemd is not None else lambda: None,
            systemd=systemd,
            supervised=lambda: not self._vitals.overdue,
        )
        watchdog = Watchdog(
            within,
            lambda: heartbeat.beats,
            lambda: self._listener.present,
            partial(end_process, state=self._instance.state, workers=self._worker_pids),
        )
        return heartbeat, watchdog

    def _worker_pids(self) -> list[int]:
        return [worker.pid for worker in self._supervisor.workers()]

    async def serve(self, sock: socket.socket) -> int:
        """Serve on a bound socket until a signal says stop; then drain and end every worker.

        Returns the exit status: 0, or `BROKEN` after the loss of a part.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)
        loop.add_signal_handler(signal.SIGHUP, self._told_to_reload)
        beating = asyncio.create_task(self._heartbeat.run(), name="heartbeat")
        beating.add_done_callback(self._lost)
        self._join()
        self._wakes = [
            loop.create_task(self._grace.run(), name="wake"),
            loop.create_task(self._caffeinate.run(), name="caffeinate"),
        ]
        self._records.start()
        self._webhook.start()
        listen = self._parts.policies.current.server.listen
        port = sock.getsockname()[1]
        self._bind_admin()
        await self._announce(listen.host, port)
        await self._listener.open(sock, listen)
        self._parts.state.ready = True
        self._greet(port)
        await self._reloader.begin()
        self._admin.serve()
        self._follow_edits()
        self._own(self._puller.tidy())
        _notify("READY=1")
        self._watchdog.start()
        try:
            await self._stop.wait()
            await self._drain()
        finally:
            self._forget_edits()
            await self._end()
        return self._status

    def _follow_edits(self) -> None:
        """From here on; a signal that came before is answered now."""
        self._following = True
        if self._told_early:
            self._told_to_reload()
        self._depend_on(self._parts.watcher.run(), "policy watcher")
        self._depend_on(self._vitals.run(), "vitals")
        self._depend_on(self._recovery.run(), "recovery")
        self._guard.start(self._lost)
        self._own(self._follow_starts())
        self._preloader.start(self._parts.policies.current)

    def _forget_edits(self) -> None:
        """A daemon that stops follows no more edits."""
        for task in self._tasks:
            task.cancel()

    def _works(self) -> bool:
        """Whether a request is served or a model loaded."""
        return bool(self._parts.admission.active) or any(
            resident.loading for resident in self._residency.residents()
        )

    def _woke(self, seconds: float) -> None:
        """Nothing was done for so long."""
        words = f"awake again after {seconds:.0f} s"
        self._parts.events.record("wake", words, {"slept_seconds": round(seconds, 1)})
        self._own(self._vitals.wake())

    def _join(self) -> None:
        """Who prepares and commits new policies, in this order, and who is told of it."""
        parts = self._parts
        self._reloader.use(
            self._listener,
            Live("log", _apply_log),
            Live("admission", parts.admission.apply),
            Live("catalog", parts.catalog.apply),
            Live("supervisor", self._supervisor.apply),
            Live("vitals", self._vitals.apply),
            Live("residency", parts.residency.apply),
            Live("memory", parts.guard.apply),
            Live("preload", parts.preloader.apply),
            Live("webhook", self._webhook.apply),
        )
        self._grace.on_wake = self._woke
        self._reloader.observe(partial(policy_report.report, parts))
        self._reloader.observe(_log_outcome)
        policy_report.measure(parts)
        memory_report.measure(parts)
        worker_report.measure(parts)
        parts.metrics.watch(
            "mlxd_log_lines_lost", "Log lines that could not be written.", logs.lost
        )

    def _bind_admin(self) -> None:
        """Without it the daemon serves all the same."""
        try:
            self._admin.bind()
        except OSError as error:
            words = f"no admin socket at {self._admin.path}: {error.strerror or error}"
            self._parts.state.warnings.append(words)

    def _moved(self, host: str, port: int) -> None:
        self._own(self._announce(host, port))

    async def _announce(self, host: str, port: int) -> None:
        """Tell the commands where the daemon is: of two moves in a row, the last."""
        address = Address(os.getpid(), host, port, __version__, str(self._admin.path))
        async with self._announcing:
            try:
                await self._threads.run(self._instance.announce, address)
            except OSError as error:
                log.warning("the state folder cannot be written: %s", error)

    def _greet(self, port: int) -> None:
        policies = self._parts.policies.current
        log.info(
            "mlxd %s serves on http://%s, pid %s, policies from %s",
            __version__, authority(policies.server.listen.host, port), os.getpid(),
            policies.folder or "built-in defaults",
        )  # fmt: skip
        warnings = [*self._parts.state.warnings, *policy_report.warnings(self._parts, policies)]
        for warning in warnings:
            log.warning("%s", warning)

    def _told_to_reload(self) -> None:
        if not self._following:
            self._told_early = True
        elif not self._stop.is_set():
            self._own(self._reload_on_signal())

    async def _reload_on_signal(self) -> None:
        """SIGHUP. systemd's `notify-reload` waits for READY=1, and so for the outcome."""
        microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        _notify(f"RELOADING=1\nMONOTONIC_USEC={microseconds}")
        status = "the reload failed"
        try:
            status = one_line(str(await self._reloader.reload("signal")))
        finally:
            _notify(f"READY=1\nSTATUS={status}")

    def _own(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

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
        self._at_once.set()
        self._stop.set()

    async def _before_load(self) -> None:
        if self._starts.held:
            raise StartsHeld(
                self._starts.reason,
                retry_after=_HELD_RETRY_SECONDS,
                policy=self._parts.policies.current.line("supervision.daemon.max_restarts"),
            )
        await self._guard.before_load()

    async def _follow_starts(self) -> None:
        """Note that this run has lived for long enough, and the end of a hold."""
        if self._starts.held:
            log.critical("%s", self._starts.reason)
            self._parts.events.record("starts_held", self._starts.reason)
        while (seconds := self._starts.due()) is not None:
            await asyncio.sleep(seconds)
            if self._starts.advance():
                self._release("an hour has passed without another unclean start")
            await self._note_starts()

    async def _reset_starts(self) -> bool:
        """Whether that ended a hold."""
        if held := self._starts.reset():
            self._release("it was reset")
        await self._note_starts()
        return held

    def _release(self, why: str) -> None:
        words = f"models are loaded again: {why}"
        self._parts.events.record("starts_released", words)
        self._preloader.apply(self._parts.policies.current)

    async def _note_starts(self) -> None:
        try:
            async with asyncio.timeout(_NOTE_SECONDS):
                await self._threads.run(self._starts.save)
        except (OSError, TimeoutError) as error:
            log.warning("starts cannot be written down: %s", str(error) or "the disk hangs")

    def _signalled(self, number: signal.Signals) -> None:
        if self._stop.is_set():
            log.warning("%s again: stopping at once", number.name)
            self._at_once.set()
        else:
            log.info("%s: draining", number.name)
            self._stop.set()

    async def _drain(self) -> None:
        """Refuse new work, let what runs finish within its grace; end at once when told again."""
        self._parts.state.ready = False
        self._parts.admission.draining = True
        self._watchdog.stop()  # a drain may take long, and that is no hang
        _notify("STOPPING=1")
        self._tell_stage("not_ready", "no new request is admitted")
        self._forget_edits()
        if self._status != BROKEN:
            self._starts.asked_to_end()
            await self._note_starts()
        await self._preloader.close()
        await self._recovery.close()
        await self._puller.close()
        drain = self._parts.policies.current.server.drain
        if self._parts.admission.active:
            await self._pause(float(drain.not_ready_delay))
        self._tell_stage("closed", "no new connection is accepted")
        await self._listener.stop_accepting()
        if not await self._all_ended(float(drain.grace)):
            unfinished = f"{self._parts.admission.active} requests did not finish in time"
            self._tell_stage("cancelled", unfinished)
            stopping = Draining("the daemon is stopping", retry_after=5.0)
            self._replays.fail_all(stopping)
            self._supervisor.fail_all(stopping)
            self._residency.give_up_loads()
            await self._all_ended(_FAREWELL_SECONDS, even_if_told=True)

    def _tell_stage(self, stage: str, words: str) -> None:
        data = {"stage": stage, "active": self._parts.admission.active}
        self._parts.events.record("drain", f"stopping: {words}", data)

    async def _all_ended(self, seconds: float, *, even_if_told: bool = False) -> bool:
        """Wait for every request's end; not longer than this, nor when told to end at once."""
        waits = {asyncio.create_task(self._parts.admission.idle())}
        if not even_if_told:
            waits.add(asyncio.create_task(self._at_once.wait()))
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        return not self._parts.admission.active

    async def _pause(self, seconds: float) -> None:
        """Sleep, unless told to end at once."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._at_once.wait()

    async def _end(self) -> None:
        await self._puller.close()
        await self._end_events()
        await self._listener.close()
        await self._admin.close()
        await self._reloader.close()
        grace = float(self._parts.policies.current.timeouts.shutdown.term_grace)
        await self._guard.close()
        self._tell_stage("workers", "the workers end")
        killing = asyncio.create_task(self._kill_when_told())
        await self._residency.close(grace)
        await self._forecasts.close()
        killing.cancel()
        for task in self._wakes:
            task.cancel()
        await asyncio.gather(*self._wakes, return_exceptions=True)
        shutil.rmtree(self._temporary, ignore_errors=True)
        await self._records.close()
        log.info("stopped")

    async def _end_events(self) -> None:
        """Whoever follows is told the rest, and that it ends."""
        self._parts.rejections.close()
        self._parts.events.close()
        await self._webhook.close()

    async def _kill_when_told(self) -> None:
        await self._at_once.wait()
        self._supervisor.kill_all()


def run(
    boot: Boot,
    instance: Instance,
    sock: socket.socket,
    *,
    overrides: Sequence[Override] = (),
    find_folder: Callable[[], Path | None] = lambda: None,
    warnings: Sequence[str] = (),
) -> int:
    """Serve until stopped; returns the exit status.

    `instance` is claimed and `sock` bound by the caller.
    """
    _raise_file_limit()

    starts = _begun(boot.store.current, instance.state)

    async def serve() -> int:
        daemon = Daemon(
            boot, instance, starts,
            overrides=overrides, find_folder=find_folder, warnings=warnings,
        )  # fmt: skip
        return await daemon.serve(sock)

    status: int = uvloop.run(serve())
    return status


def _begun(policies: PolicySet, state: Path) -> StartLedger:
    starts = StartLedger(state, SystemClock(), policies.supervision.daemon.max_restarts)
    try:
        starts.begin()
    except OSError as error:
        log.warning("starts cannot be written down: %s", error)
    return starts


def _notify(words: str) -> None:
    """Tell systemd, where it is the one that started us."""
    sdnotify.SystemdNotifier().notify(words)


def _tell_alive() -> None:
    """To systemd; where it does not listen, nobody waits for it."""
    notifier = sdnotify.SystemdNotifier()
    if notifier.socket is not None:
        notifier.socket.setblocking(False)
    notifier.notify("WATCHDOG=1")


def _guard(
    policies: PolicySet,
    residency: Residency,
    admission: Admission,
    *,
    clock: Clock,
    events: Events,
    metrics: Metrics,
) -> Guard:
    """It looks at memory, and is asked before each load."""
    monitors = Monitors(residency.read_memory, read_pressure, residency.workers)
    guard = Guard(
        policies, monitors, residency, admission, clock=clock, events=events, counts=metrics
    )
    residency.before_load = guard.before_load
    residency.on_memory_error = guard.out_of_memory
    residency.on_evicted = partial(_evicted, events, metrics)
    return guard


def _evicted(events: Events, metrics: Metrics, reason: str, model: str, size: int) -> None:
    """What a watermark has dropped is counted where that is decided."""
    if reason != "watermark":
        metrics.evicted(reason)
    data = {"model": model, "reason": reason, "bytes": size}
    events.record("evict", f"{model} had to leave memory: {reason}", data)


def _replays(clock: Clock, guard: Guard, *, events: Events, metrics: Metrics) -> Replays:
    """A SIGKILL may be the system's, for want of memory."""
    killed = OomKills()
    replays = Replays(clock, lambda: killed.more() or guard.level >= Level.WARNING)
    replays.on_event = events.record
    replays.on_replay = metrics.replayed
    return replays


def _apply_log(policies: PolicySet) -> None:
    logs.configure(policies.server.log.level, policies.server.log.format)


def _log_outcome(outcome: Outcome) -> None:
    """Each further reason against one: the first is in its event."""
    if outcome.trigger != "start":
        for error in outcome.errors[1:]:
            log.warning("policies refused, also: %s", error)


def _available_memory() -> int | None:
    reading = read_memory()
    return reading.available if reading is not None else None


def _fresh_temporary(state: Path) -> Path:
    """Where workers keep their private TMPDIR; what a killed daemon left there is removed."""
    temporary = state / "tmp"
    end_leftovers(state)
    if temporary.is_symlink() or temporary.is_file():
        temporary.unlink()
    shutil.rmtree(temporary, ignore_errors=True)
    with contextlib.suppress(OSError):  # a full disk: they are made elsewhere
        temporary.mkdir(mode=0o700, parents=True, exist_ok=True)
    return temporary


def _raise_file_limit() -> None:
    """launchd starts with a soft limit of 256 files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else hard
    if soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
