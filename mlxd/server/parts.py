"""What the handlers work with; made by the daemon, handed to each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mlxd.control.admission import Admission
from mlxd.control.archive import Archive
from mlxd.control.benched import Benches
from mlxd.control.catalog import Catalog
from mlxd.control.dispatch import Dispatcher
from mlxd.control.expected import Expected
from mlxd.control.guard import Guard
from mlxd.control.keys import Keys
from mlxd.control.library import Library
from mlxd.control.memory import MemoryReading
from mlxd.control.preload import Preloader
from mlxd.control.pull import Puller
from mlxd.control.replay import Replays
from mlxd.control.residency import Residency
from mlxd.control.spares import Spares
from mlxd.control.stories import Stories
from mlxd.control.supervisor import Supervisor
from mlxd.control.usage import Usage
from mlxd.core.clock import Clock
from mlxd.core.installed import Installed
from mlxd.core.starts import StartLedger
from mlxd.policy.reload import Reloader
from mlxd.policy.store import PolicyStore
from mlxd.policy.watch import Watcher
from mlxd.server.resume import Resumption
from mlxd.server.tracing import Tracing
from mlxd.server.unread import Unread
from mlxd.telemetry.events import Events
from mlxd.telemetry.lately import Lately
from mlxd.telemetry.metrics import Metrics
from mlxd.telemetry.records import Records
from mlxd.telemetry.rejections import Rejections


@dataclass(slots=True)
class State:
    """What /readyz answers by."""

    ready: bool = False
    """Listeners are bound, a policy is in force, and the daemon is not draining."""
    draining: bool = False
    """The daemon stops. New requests are served as long as connections are accepted."""
    probed: float | None = None
    """When /readyz was last asked, on the monotonic clock."""
    warnings: list[str] = field(default_factory=list)
    """Found at the start; shown for as long as the daemon runs."""
    sinks: list[Callable[[], list[str]]] = field(default_factory=list)
    """Asked for warnings of now, by those to whom the daemon writes."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The daemon's parts, as the server sees them."""

    policies: PolicyStore
    keys: Keys
    reloader: Reloader
    watcher: Watcher
    catalog: Catalog
    admission: Admission
    usage: Usage
    supervisor: Supervisor
    spares: Spares
    residency: Residency
    preloader: Preloader
    guard: Guard
    dispatcher: Dispatcher
    replays: Replays
    benches: Benches
    expected: Expected
    puller: Puller
    library: Library
    archive: Archive
    resumption: Resumption
    stories: Stories
    lately: Lately
    clock: Clock
    read_memory: Callable[[], MemoryReading | None]
    metrics: Metrics
    events: Events
    rejections: Rejections
    records: Records
    tracing: Tracing
    state: State
    unread: Unread
    installed: Installed
    starts: StartLedger
