"""One model spec as the supervisor keeps it: its worker, while there is one, and its failures."""

from __future__ import annotations

from collections.abc import Callable

from mlxd.control.breaker import REFUSED, Breaker, State
from mlxd.control.worker import Worker
from mlxd.core.clock import Clock
from mlxd.core.errors import ModelLoadFailed
from mlxd.core.models import ModelCard, ModelSpec
from mlxd.policy.schema.supervision import Worker as WorkerPolicy


class Slot:
    """Outlives its workers. A card with another digest is another model: its failures are over."""

    def __init__(self, card: ModelCard, clock: Clock, policy: Callable[[], WorkerPolicy]) -> None:
        self.card = card
        self.worker: Worker | None = None
        """The one that is started or serves; None between two."""
        self.serves = False
        """Whether it has loaded its model and made a token of it."""
        self.restarts = 0
        """Since the daemon started."""
        self.reason = ""
        """Why it failed last, in words; empty: it has not, or is well again."""
        self.final: ModelLoadFailed | None = None
        """What the last worker said itself of why it cannot load its model."""
        self.lost = False
        """A worker that served has ended unasked, and no other has taken its place."""
        self.joined = 0
        """Requests that wait for the present probe."""
        self.loads = 0
        """Loads of it under way, from their wait for a turn on."""
        self.told = State.IDLE
        """The state that was told of last."""
        self._starting = False
        self._clock = clock
        self._policy = policy
        self._breaker = Breaker()
        self._counted: Worker | None = None

    # -- what there is

    @property
    def spec(self) -> ModelSpec:
        return self.card.spec

    @property
    def name(self) -> str:
        return self.card.name

    @property
    def pid(self) -> int | None:
        return self.worker.pid if self.alive and self.worker is not None else None

    @property
    def alive(self) -> bool:
        return self.worker is not None and self.worker.alive

    @property
    def serving(self) -> Worker | None:
        """The worker that can take a request now."""
        return self.worker if self.alive and self.serves else None

    @property
    def state(self) -> State:
        if self.serving is not None:
            return State.SERVING
        resting = self._breaker.state(self._clock.monotonic(), self._policy())
        return State.STARTING if self._starting and resting not in REFUSED else resting

    @property
    def busy(self) -> bool:
        """Whether it has a worker, or is about to."""
        return self.alive or self._starting or self.loads > 0

    @property
    def since_failure(self) -> float:
        """Seconds from its last failure to now."""
        return self._clock.monotonic() - self._breaker.failed_at

    @property
    def failures(self) -> int:
        """In a row."""
        return self._breaker.failures(self._clock.monotonic(), self._policy())

    @property
    def next_start(self) -> float | None:
        """When it may be started again, on the monotonic clock; None: now, or it runs."""
        if self.state not in (State.BACKING_OFF, State.OPEN, State.QUARANTINED):
            return None
        return self._breaker.next_start(self._clock.monotonic(), self._policy())

    @property
    def until(self) -> float | None:
        """When its quarantine ends, on the monotonic clock."""
        return self.next_start if self.state is State.QUARANTINED else None

    @property
    def wait(self) -> float:
        """Seconds to `next_start`, not below 0."""
        at = self.next_start
        return max(0.0, at - self._clock.monotonic()) if at is not None else 0.0

    # -- what happens to it

    def load_begins(self) -> None:
        """Its wait for a turn and for room, and its start: no time without a failure."""
        if not self.loads:
            self._breaker.load_begins(self._clock.monotonic())
        self.loads += 1

    def load_ended(self) -> None:
        self.loads -= 1
        if not self.loads:
            self._breaker.load_ended(self._clock.monotonic())

    def started(self) -> bool:
        """A start begins; True: it is a restart."""
        self.gone()
        self._starting = True
        restart = self._breaker.started(self._clock.monotonic())
        self.restarts += restart
        return restart

    def well(self) -> None:
        """Its worker has loaded the model, and nothing is known against it."""
        self.serves, self.lost = True, False
        self._starting, self.final = False, None

    def delivered(self) -> None:
        """Its worker made a token."""
        self._breaker.delivered()

    def failed(self, worker: Worker | None, reason: str) -> bool:
        """A worker ended unasked, or a start failed; False: that was counted already.

        One whose process is gone only after the next was started is counted and no more.
        """
        if worker is not None and worker is self._counted:
            return False
        self._counted = worker
        if worker is None or worker is self.worker:
            self.lost = self.lost or self.serves
            self._starting = self.serves = False
        self.reason, self.final = reason, None
        self._breaker.failed(self._clock.monotonic(), self._policy())
        return True

    def gone(self) -> None:
        """It has no worker any more."""
        self.worker = None
        self.serves = self._starting = False

    def probe(self) -> None:
        """A probe begins."""
        self._breaker.probe()

    def put_off(self) -> None:
        """The probe is over, and if it has neither delivered nor failed, it was not made."""
        self._breaker.put_off(self._clock.monotonic())

    def reset(self) -> None:
        """Forget its failures; a worker that runs goes on."""
        self._breaker = Breaker()
        if self.loads:
            self._breaker.load_begins(self._clock.monotonic())
        self.reason, self.final = "", None
