"""The daemon's parts: made, each with those it needs, and joined. Nothing runs yet."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mlxd.control.admission import Admission
from mlxd.control.archive import Archive
from mlxd.control.benched import Benches
from mlxd.control.blobs import Blobs
from mlxd.control.caffeinate import Caffeinate
from mlxd.control.catalog import Catalog
from mlxd.control.created import CreatedModels
from mlxd.control.dispatch import Dispatcher
from mlxd.control.expected import Expected
from mlxd.control.forecast import Forecasts
from mlxd.control.grammars import Grammars
from mlxd.control.guard import Guard
from mlxd.control.keys import Keys
from mlxd.control.leftovers import end_leftovers
from mlxd.control.library import Library
from mlxd.control.memory import read_memory, returns_late
from mlxd.control.monitors import Monitors
from mlxd.control.own_names import OwnNames
from mlxd.control.predecessors import Predecessors
from mlxd.control.prefixes import PrefixWishes
from mlxd.control.preload import Preloader
from mlxd.control.pressure import OomKills, read_pressure
from mlxd.control.pull import Puller
from mlxd.control.pulled import PulledModels
from mlxd.control.recovery import Recovery
from mlxd.control.replay import Replays
from mlxd.control.residency import Residency
from mlxd.control.scene import ResidentScene
from mlxd.control.sleep import Grace
from mlxd.control.spares import Spares
from mlxd.control.stories import Stories
from mlxd.control.supervisor import Supervisor
from mlxd.control.usage import Usage
from mlxd.control.vitals import Vitals
from mlxd.control.watermarks import Level
from mlxd.core import aside, durable
from mlxd.core.claim import Claim
from mlxd.core.clock import AwakeClock, SystemClock
from mlxd.core.installed import Installed
from mlxd.core.starts import StartLedger
from mlxd.core.threads import Threads
from mlxd.daemon.core_dumps import CoreDumps
from mlxd.daemon.evictions import Evictions
from mlxd.daemon.hold import Hold
from mlxd.daemon.log import Log
from mlxd.daemon.systemd import Systemd
from mlxd.daemon.traffic import Traffic
from mlxd.policy.boot import Boot
from mlxd.policy.history import History, history_of
from mlxd.policy.load import Override
from mlxd.policy.outcome import Outcome
from mlxd.policy.reload import Reloader
from mlxd.policy.store import Live, PolicyStore
from mlxd.policy.watch import Watcher
from mlxd.server import (
    adaptive_report,
    cache_report,
    kept_responses,
    load_report,
    memory_report,
    policy_report,
    queue_report,
    resume_report,
    worker_report,
)
from mlxd.server.addresses import Addresses
from mlxd.server.admin import Admin
from mlxd.server.admin_socket import AdminSocket
from mlxd.server.app import dialects, routes
from mlxd.server.connections import GuardedServer
from mlxd.server.edge import Edge
from mlxd.server.effects import Effects
from mlxd.server.guarded import Administrators, Front, Guarded
from mlxd.server.identity import Identity
from mlxd.server.listener import Listener, Moved
from mlxd.server.page.token import PageToken
from mlxd.server.parts import Parts, State
from mlxd.server.peer import check_owner
from mlxd.server.repeats import Repeats
from mlxd.server.resume import Resumption
from mlxd.server.tracing import Tracing
from mlxd.server.unread import Unread
from mlxd.server.usage_report import count_tokens
from mlxd.server.watchdog import Heartbeat, Watchdog, end_process, told_by_systemd
from mlxd.server.webhook import Webhook
from mlxd.telemetry import logs
from mlxd.telemetry.events import Events
from mlxd.telemetry.flight import LastRun, last_run
from mlxd.telemetry.lately import Lately
from mlxd.telemetry.metrics import Metrics
from mlxd.telemetry.records import Records
from mlxd.telemetry.rejections import Rejections
from mlxd.telemetry.served import Served

log = logging.getLogger(__name__)

GUIDE = Path(__file__).parents[1] / "guide"
_NAMES = "models.d"


@dataclass(frozen=True, slots=True)
class Composition:
    """Everything that a daemon is made of: what the server sees, and what only its life needs."""

    parts: Parts
    listener: Listener
    repeats: Repeats
    admin: AdminSocket
    hold: Hold
    vitals: Vitals
    recovery: Recovery
    spares: Spares
    grace: Grace
    caffeinate: Caffeinate
    forecasts: Forecasts
    grammars: Grammars
    webhook: Webhook
    traffic: Traffic
    systemd: Systemd
    heartbeat: Heartbeat
    watchdog: Watchdog
    threads: Threads
    """For words on the disk of the state folder."""
    temporary: Path
    """The workers' private TMPDIRs are in it."""


@dataclass(frozen=True, slots=True)
class _Ground:
    """What the parts stand on: time, policies, what earlier runs left, and who is told."""

    state: Path
    temporary: Path
    machine: SystemClock
    clock: AwakeClock
    store: PolicyStore
    history: History
    last: LastRun
    metrics: Metrics
    events: Events
    threads: Threads
    installed: Installed


@dataclass(frozen=True, slots=True)
class _Models:
    """Who finds models, has them in memory, and keeps them well there."""

    pulled: PulledModels
    own_names: OwnNames
    blobs: Blobs
    created: CreatedModels
    catalog: Catalog
    usage: Usage
    admission: Admission
    spares: Spares
    supervisor: Supervisor
    forecasts: Forecasts
    residency: Residency
    grace: Grace
    vitals: Vitals
    preloader: Preloader
    recovery: Recovery
    guard: Guard
    grammars: Grammars


def compose(
    boot: Boot,
    claim: Claim,
    starts: StartLedger,
    *,
    overrides: Sequence[Override],
    find_folder: Callable[[], Path | None],
    warnings: Sequence[str],
    moved: Moved,
) -> Composition:
    """`moved` is told where the listener is, after each change of that."""
    ground = _ground(boot.store, claim.state)
    reloader = Reloader(
        ground.store, ground.history, ground.clock, boot,
        overrides=overrides, find_folder=find_folder,
    )  # fmt: skip
    models = _models(ground)
    hold = Hold(
        starts, ground.store, models.preloader,
        look=models.guard.before_load, events=ground.events, threads=ground.threads,
    )  # fmt: skip
    models.residency.before_load = hold.before_load
    models.spares.held = lambda: starts.held
    traffic = Traffic(
        ground.state, ground.machine.wall, _total_memory, partial(_in_memory, models.residency)
    )
    ground.events.observers.append(traffic.happened)
    parts = _parts(ground, models, reloader, starts, State(warnings=[*warnings]))
    repeats = Repeats(ground.store, ground.clock, parts.rejections, parts.metrics)
    repeats.on_told = traffic.repeated
    token = PageToken()
    front = Front(routes(parts, token))
    listener = Listener(_server(parts, ground, repeats, front), ground.clock, moved)
    admin = Admin(parts, ground.history, _effects(parts, listener), hold.reset)
    front.admin = Guarded(admin.routes(), Administrators(token).check)
    systemd = Systemd()
    heartbeat, watchdog = _watched(ground, models, parts, listener, systemd)
    return Composition(
        parts=parts,
        listener=listener,
        repeats=repeats,
        admin=_admin_socket(parts, ground, admin),
        hold=hold,
        vitals=models.vitals,
        recovery=models.recovery,
        spares=models.spares,
        grace=models.grace,
        caffeinate=_caffeinate(ground, models),
        forecasts=models.forecasts,
        grammars=models.grammars,
        webhook=Webhook(ground.store.current, ground.events, ground.metrics.webhook_post),
        traffic=traffic,
        systemd=systemd,
        heartbeat=heartbeat,
        watchdog=watchdog,
        threads=ground.threads,
        temporary=ground.temporary,
    )


def join(made: Composition, log: Log) -> None:
    """Who prepares and commits new policies, in this order, and who is told of it."""
    parts, cores = made.parts, CoreDumps()
    cores.apply(parts.policies.current)
    parts.reloader.use(
        parts.keys,  # before the listener: no door is opened to those who cannot have a key
        made.listener,
        Live(log.apply),
        Live(cores.apply),
        Live(parts.admission.apply),
        Live(parts.catalog.apply),
        Live(parts.supervisor.apply),
        Live(made.spares.apply),
        Live(made.vitals.apply),
        Live(parts.residency.apply),
        Live(parts.guard.apply),
        Live(parts.preloader.apply),
        Live(parts.archive.apply),
        Live(parts.resumption.apply),
        Live(parts.stories.apply),
        Live(made.webhook.apply),
        Live(made.traffic.apply),
        Live(parts.tracing.apply),
    )
    parts.reloader.refresh(
        parts.admission.refresh,
        parts.supervisor.refresh,
        parts.residency.refresh,
        parts.guard.refresh,
    )
    made.traffic.apply(parts.policies.current)
    parts.stories.on_end.append(made.traffic.ended)
    parts.state.sinks += [made.traffic.warnings, made.webhook.warnings]
    parts.reloader.observe(partial(policy_report.report, parts))
    parts.reloader.observe(_log_outcome)
    parts.stories.on_end.append(partial(count_tokens, parts.metrics))
    parts.stories.on_end.append(Served(parts.metrics.served).ended)
    parts.stories.on_end.append(parts.lately.ended)
    policy_report.measure(parts)
    adaptive_report.measure(parts)
    memory_report.measure(parts)
    cache_report.measure(parts)
    worker_report.measure(parts)
    load_report.measure(parts)
    queue_report.measure(parts)
    kept_responses.measure(parts)
    resume_report.measure(parts)
    parts.metrics.watch("mlxd_log_lines_lost", "Log lines that could not be written.", logs.lost)
    parts.metrics.watch(
        "mlxd_traffic_lines_lost",
        "Lines of the traffic log that could not be written.",
        lambda: made.traffic.lost,
    )
    parts.metrics.watch_counts(
        "mlxd_trace_spans", "Spans of requests, by what became of them.",
        ("result",), parts.tracing.counts,
    )  # fmt: skip


def _ground(store: PolicyStore, state: Path) -> _Ground:
    temporary = _fresh_temporary(state)
    machine = SystemClock()
    clock = AwakeClock(machine)
    last = last_run(state)
    return _Ground(
        state=state,
        temporary=temporary,
        machine=machine,
        clock=clock,
        store=store,
        history=history_of(state),
        last=last,
        metrics=Metrics(),
        events=Events(clock, last.ids_after(clock)),
        threads=Threads("state"),
        installed=Installed(),
    )


def _unread(ground: _Ground) -> list[str]:
    """What lies on the disk and is not of this version, for people."""
    folders = [ground.state, ground.history.folder, ground.state / _NAMES]
    change = ground.installed.change()
    return [*([change] if change else []), *aside.told(folders), *ground.history.unread()]


def _models(ground: _Ground) -> _Models:
    clock, store = ground.clock, ground.store
    pulled = PulledModels(ground.state / "models")
    own_names = OwnNames(ground.state / _NAMES)
    blobs = Blobs(ground.state / "blobs", ground.clock)
    created = CreatedModels(ground.state / "created", blobs)
    predecessors = Predecessors()
    catalog = Catalog(
        GUIDE, clock, pulled=pulled.folder, created=created.folder, names=own_names,
        predecessors=predecessors,
    )  # fmt: skip
    spares = Spares(ground.temporary, clock, store.current, total=_total_memory)
    supervisor = _supervisor(ground, spares)
    forecasts = Forecasts(ground.state, clock)
    residency = Residency(
        supervisor, clock, read_memory, forecasts,
        policies=store.current, check=catalog.check, predecessors=predecessors,
        returns_late=returns_late(),
    )  # fmt: skip
    grace = Grace(clock, lambda: float(store.current.supervision.sleep_wake.resume_grace))
    residency.calm = grace.calm
    usage = Usage(ground.state, ground.machine)
    admission = Admission(
        clock, store.current, ResidentScene(residency), quotas=usage.quotas,
        real=ground.machine,  # windows of rates and quotas are what clients count too
    )  # fmt: skip
    preloader = Preloader(catalog, residency)
    return _Models(
        pulled=pulled,
        own_names=own_names,
        blobs=blobs,
        created=created,
        catalog=catalog,
        usage=usage,
        admission=admission,
        spares=spares,
        supervisor=supervisor,
        forecasts=forecasts,
        residency=residency,
        grace=grace,
        vitals=Vitals(supervisor, clock, store.current, grace.calm),
        preloader=preloader,
        recovery=Recovery(supervisor, residency, clock, lambda: store.current, preloader.keeps),
        guard=_guard(ground, residency, admission, spares),
        grammars=Grammars(clock),
    )


def _supervisor(ground: _Ground, spares: Spares) -> Supervisor:
    supervisor = Supervisor(
        ground.clock, ground.temporary, ground.store.current,
        counts=ground.metrics, spawn=spares.spawn,
        prefixes=PrefixWishes(ground.state, ground.store.current),
        installed=ground.installed.change, spared=lambda: spares.fit,
    )  # fmt: skip
    supervisor.on_event = ground.events.record
    return supervisor


def _guard(ground: _Ground, residency: Residency, admission: Admission, spares: Spares) -> Guard:
    """It looks at memory, and is told who found none."""
    monitors = Monitors(residency.read_memory, read_pressure, residency.workers)
    guard = Guard(
        ground.store.current, monitors, residency, admission,
        clock=ground.clock, events=ground.events, counts=ground.metrics,
    )  # fmt: skip
    spares.level = lambda: guard.level
    guard.on_level = spares.look
    residency.on_memory_error = guard.out_of_memory
    residency.on_evicted = Evictions(ground.events, ground.metrics, guard).add
    return guard


def _parts(
    ground: _Ground, models: _Models, reloader: Reloader, starts: StartLedger, state: State
) -> Parts:
    catalog, residency, events = models.catalog, models.residency, ground.events
    pulled, own_names = models.pulled, models.own_names
    replays = _replays(ground, models.guard)
    replays.on_latency = models.admission.measured
    puller = Puller(pulled, own_names, catalog, events.record)
    benches = Benches(ground.state, ground.clock)
    expected = Expected(catalog, benches)
    models.admission.scheduler.expects = expected.hold_seconds
    return Parts(
        policies=ground.store,
        keys=Keys(ground.store.current, ground.state, ground.clock),
        reloader=reloader,
        watcher=Watcher(lambda: reloader.folder, reloader.look),
        catalog=catalog,
        admission=models.admission,
        usage=models.usage,
        supervisor=models.supervisor,
        spares=models.spares,
        residency=residency,
        preloader=models.preloader,
        guard=models.guard,
        dispatcher=Dispatcher(
            catalog,
            models.admission,
            residency,
            replays,
            clock=ground.clock,
            check_grammar=models.grammars.check,
        ),
        replays=replays,
        benches=benches,
        expected=expected,
        puller=puller,
        library=Library(
            catalog,
            residency,
            puller,
            pulled,
            own_names,
            models.created,
            models.blobs,
            events.record,
        ),
        archive=Archive(ground.clock, ground.store.current),
        resumption=Resumption(ground.clock, ground.store.current),
        stories=Stories(ground.store.current),
        lately=Lately(),
        clock=ground.clock,
        read_memory=read_memory,
        metrics=ground.metrics,
        events=events,
        rejections=Rejections(events),
        unread=Unread(partial(_unread, ground), ground.threads, ground.clock),
        installed=ground.installed,
        records=_records(ground, residency, models.admission),
        tracing=Tracing(ground.store.current, dialects()),
        state=state,
        starts=starts,
    )


def _records(ground: _Ground, residency: Residency, admission: Admission) -> Records:
    records = Records(
        ground.state, ground.clock, ground.events, ground.last,
        workers=residency.workers, available=_available_memory,
    )  # fmt: skip

    def worked() -> None:
        records.flight.changed()
        admission.look()

    residency.on_work = worked
    return records


def _replays(ground: _Ground, guard: Guard) -> Replays:
    """A SIGKILL may be the system's, for want of memory."""
    killed = OomKills(ground.clock)
    guard.on_look = killed.look
    replays = Replays(ground.clock, lambda: killed.lately() or guard.level >= Level.WARNING)
    replays.on_event = ground.events.record
    replays.on_replay = ground.metrics.replayed
    replays.on_malformed = ground.metrics.malformed_calls
    replays.on_drafts = ground.metrics.drafted
    return replays


def _server(parts: Parts, ground: _Ground, repeats: Repeats, front: Front) -> GuardedServer:
    addresses = Addresses(ground.store, ground.clock)
    edge = Edge(
        parts, front, callers=Identity(parts.keys), refused=repeats.learn, addresses=addresses,
        traces=parts.tracing,
    )  # fmt: skip
    server = GuardedServer(edge, ground.store, ground.clock, addresses=addresses)
    server.answers = repeats
    server.farewells.rejections = parts.rejections
    parts.metrics.watch_counts(
        "mlxd_connections_refused",
        "Connections that were refused, and requests through proxies, by the policy that did it.",
        ("policy",),
        lambda: [
            (("max_connections",), server.refused),
            (("per_ip",), addresses.refused),
            (("header_timeout",), server.slow),
        ],
    )
    return server


def _effects(parts: Parts, listener: Listener) -> Effects:
    return Effects(listener, parts.admission, parts.catalog, parts.residency, parts.keys)


def _admin_socket(parts: Parts, ground: _Ground, admin: Admin) -> AdminSocket:
    edge = Edge(parts, Guarded(admin.routes(), check_owner), walls=False)
    server = GuardedServer(edge, ground.store, ground.clock, limited=False)
    return AdminSocket(server, ground.state)


def _caffeinate(ground: _Ground, models: _Models) -> Caffeinate:
    def works() -> bool:
        """Whether a request is served or a model loaded."""
        return bool(models.admission.active) or any(
            resident.loading for resident in models.residency.residents()
        )

    return Caffeinate(
        ground.clock, lambda: ground.store.current.supervision.sleep_wake.prevent_idle_sleep, works
    )


def _watched(
    ground: _Ground, models: _Models, parts: Parts, listener: Listener, systemd: Systemd
) -> tuple[Heartbeat, Watchdog]:
    within = float(ground.store.current.supervision.daemon.watchdog)
    by_systemd = told_by_systemd(os.environ, os.getpid())
    heartbeat = Heartbeat(
        ground.machine,
        within,
        ground.metrics.loop_lag,
        systemd.alive if by_systemd is not None else lambda: None,
        systemd=by_systemd,
        supervised=lambda: parts.state.draining or not models.vitals.overdue,
    )

    def worker_pids() -> list[int]:
        return [worker.pid for worker in models.supervisor.workers()] + models.spares.pids()

    watchdog = Watchdog(
        within,
        heartbeat,
        lambda: listener.present,
        lambda: listener.taken,
        partial(end_process, state=ground.state, workers=worker_pids),
    )
    return heartbeat, watchdog


def _fresh_temporary(state: Path) -> Path:
    """Where workers keep their private TMPDIR; what a killed daemon left there is removed."""
    temporary = state / "tmp"
    end_leftovers(state)
    durable.remove_tree(temporary)
    with contextlib.suppress(OSError):  # a full disk: they are made elsewhere
        if not temporary.is_dir() or temporary.is_symlink():
            temporary.unlink(missing_ok=True)
        temporary.mkdir(mode=0o700, parents=True, exist_ok=True)
    return temporary


def _available_memory() -> int | None:
    reading = read_memory()
    return reading.available if reading is not None else None


def _in_memory(residency: Residency) -> frozenset[str]:
    """Names of the models that serve."""
    workers = map(residency.worker_of, residency.residents())
    return frozenset(worker.name for worker in workers if worker is not None)


def _total_memory() -> int:
    reading = read_memory()
    return reading.total if reading is not None else 0


def _log_outcome(outcome: Outcome) -> None:
    """Each further reason against one: the first is in its event."""
    if outcome.trigger != "start":
        for error in outcome.errors[1:]:
            log.warning("policies refused, also: %s", error)
