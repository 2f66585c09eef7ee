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
from mlxd.control.catalog import Catalog
from mlxd.control.dispatch import Dispatcher
from mlxd.control.forecast import Forecasts
from mlxd.control.guard import Guard
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
from mlxd.control.supervisor import Supervisor
from mlxd.control.vitals import Vitals
from mlxd.control.watermarks import Level
from mlxd.core.clock import Clock, SystemClock
from mlxd.core.errors import Draining
from mlxd.core.instance import Address, Instance, authority
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
from mlxd.telemetry import logs
from mlxd.telemetry.events import Events
from mlxd.telemetry.logs import one_line
from mlxd.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

GUIDE = Path(__file__).parent / "guide"
_FAREWELL_SECONDS = 0.5


class Daemon:
    """One running mlxd."""

    def __init__(
        self,
        boot: Boot,
        instance: Instance,
        *,
        overrides: Sequence[Override] = (),
        find_folder: Callable[[], Path | None] = lambda: None,
        warnings: Sequence[str] = (),
    ) -> None:
        self._instance = instance
        self._temporary = _fresh_temporary(instance.state)
        clock = SystemClock()
        store = boot.store
        history = history_of(instance.state)
        self._reloader = Reloader(
            store, history, clock, boot, overrides=overrides, find_folder=find_folder
        )
        metrics, events = Metrics(), Events(clock)
        pulled = PulledModels(instance.state / "models")
        own_names = OwnNames(instance.state / "models.d")
        catalog = Catalog(GUIDE, clock, pulled=pulled.folder, names=own_names)
        admission = Admission(clock)
        self._supervisor = Supervisor(clock, self._temporary, store.current, counts=metrics)
        self._supervisor.on_event = events.record
        self._forecasts = Forecasts(instance.state, clock)
        self._residency = Residency(
            self._supervisor, clock, read_memory, self._forecasts, check=catalog.check
        )
        self._vitals = Vitals(
            self._supervisor, clock, store.current,
            lambda: self._residency.calm(),  # noqa: PLW0108  # as it is then
        )  # fmt: skip
        self._preloader = Preloader(catalog, self._residency)
        self._recovery = Recovery(
            self._supervisor, self._residency, clock,
            lambda: store.current, self._preloader.keeps,
        )  # fmt: skip
        self._guard = _guard(
            store.current, self._residency, admission, clock=clock, events=events, metrics=metrics
        )
        self._replays = _replays(clock, self._guard, events=events, metrics=metrics)
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
            state=State(warnings=list(warnings)),
        )
        server = GuardedServer(Edge(self._parts, routes(self._parts)), store, clock)
        self._listener = Listener(server, self._moved)
        admin = Admin(
            self._parts,
            history,
            Effects(self._listener, admission, catalog, self._residency),
        )
        edge = Edge(self._parts, admin.routes(), walls=False)
        self._admin = AdminSocket(GuardedServer(edge, store, clock, limited=False), instance.state)
        self._stop = asyncio.Event()
        self._at_once = asyncio.Event()
        self._following = False
        self._told_early = False
        """A SIGHUP came while the daemon was starting."""
        self._announcing = asyncio.Lock()
        self._threads = Threads("state")
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, sock: socket.socket) -> None:
        """Serve on a bound socket until a signal says stop; then drain and end every worker."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)
        loop.add_signal_handler(signal.SIGHUP, self._told_to_reload)
        self._join()
        listen = self._parts.policies.current.server.listen
        port = sock.getsockname()[1]
        self._bind_admin()
        await self._announce(listen.host, port)
        await self._listener.open(sock, listen)
        self._parts.state.ready = True
        self._greet(port)
        await self._reloader.begin()
        await self._admin.serve()
        self._follow_edits()
        self._own(self._puller.tidy())
        sdnotify.SystemdNotifier().notify("READY=1")
        try:
            await self._stop.wait()
            self._forget_edits()
            await self._preloader.close()
            await self._recovery.close()
            await self._puller.close()
            await self._drain()
        finally:
            self._forget_edits()
            await self._end()

    def _follow_edits(self) -> None:
        """From here on; a signal that came before is answered now."""
        self._following = True
        if self._told_early:
            self._told_to_reload()
        self._own(self._parts.watcher.run())
        self._guard.start()
        self._own(self._vitals.run())
        self._own(self._recovery.run())
        self._preloader.start(self._parts.policies.current)

    def _forget_edits(self) -> None:
        """A daemon that stops follows no more edits."""
        for task in self._tasks:
            task.cancel()

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
        )
        self._reloader.observe(_log_outcome)
        self._reloader.observe(partial(policy_report.report, parts))
        policy_report.measure(parts)
        memory_report.measure(parts)
        worker_report.measure(parts)

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
        notifier = sdnotify.SystemdNotifier()
        microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        notifier.notify(f"RELOADING=1\nMONOTONIC_USEC={microseconds}")
        status = "the reload failed"
        try:
            status = one_line(str(await self._reloader.reload("signal")))
        finally:
            notifier.notify(f"READY=1\nSTATUS={status}")

    def _own(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _signalled(self, number: signal.Signals) -> None:
        if self._stop.is_set():
            log.warning("%s again: stopping at once", number.name)
            self._at_once.set()
        else:
            log.info("%s: draining", number.name)
            self._stop.set()

    async def _drain(self) -> None:
        """Refuse new work, let what runs finish within its grace; end at once when told again."""
        sdnotify.SystemdNotifier().notify("STOPPING=1")
        self._parts.state.ready = False
        self._parts.admission.draining = True
        drain = self._parts.policies.current.server.drain
        if self._parts.admission.active:
            await self._pause(float(drain.not_ready_delay))
        await self._listener.stop_accepting()
        if not await self._all_ended(float(drain.grace)):
            log.warning("%s requests did not finish in time", self._parts.admission.active)
            stopping = Draining("the daemon is stopping", retry_after=5.0)
            self._replays.fail_all(stopping)
            self._supervisor.fail_all(stopping)
            await self._all_ended(_FAREWELL_SECONDS, even_if_told=True)

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
        await self._listener.close()
        await self._admin.close()
        await self._reloader.close()
        grace = float(self._parts.policies.current.timeouts.shutdown.term_grace)
        await self._guard.close()
        killing = asyncio.create_task(self._kill_when_told())
        await self._residency.close(grace)
        await self._forecasts.close()
        killing.cancel()
        shutil.rmtree(self._temporary, ignore_errors=True)
        log.info("stopped")

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
) -> None:
    """Serve until stopped. `instance` is claimed and `sock` bound by the caller."""
    _raise_file_limit()

    async def main() -> None:
        daemon = Daemon(
            boot, instance, overrides=overrides, find_folder=find_folder, warnings=warnings
        )
        await daemon.serve(sock)

    uvloop.run(main())


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
    """The start is greeted; each later attempt is a line, each reason against it one more."""
    if outcome.trigger == "start":
        return
    log.log(logging.INFO if outcome.ok else logging.WARNING, "%s", outcome)
    for error in outcome.errors[1:]:
        log.warning("policies refused, also: %s", error)


def _fresh_temporary(state: Path) -> Path:
    """Where workers keep their private TMPDIR; what a killed daemon left there is removed."""
    temporary = state / "tmp"
    if temporary.is_symlink() or temporary.is_file():
        temporary.unlink()
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(mode=0o700, parents=True, exist_ok=True)
    return temporary


def _raise_file_limit() -> None:
    """launchd starts with a soft limit of 256 files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else hard
    if soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
