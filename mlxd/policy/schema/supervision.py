"""supervision.yaml: how workers and the daemon are watched, restarted and given up."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field

from mlxd.policy.schema.base import Auto, Policy, Positive, field, section
from mlxd.policy.schema.references import PublicUrl, Reference
from mlxd.policy.units import Delay, Duration, LongDuration, Share

Event = Literal[
    "worker_up", "worker_down", "restart", "load", "evict", "pressure", "breaker", "reload",
    "reject", "replay", "unclean_end",
]  # fmt: skip


class Health(Policy):
    interval: Duration = field(
        "10s", "Between two checks of a worker.", unit="duration", example="5s"
    )
    timeout: Duration = field("5s", "How long one check may take.", unit="duration", example="2s")
    failures_down: int = field(
        3, "Checks missed in a row after which a worker counts as down.",
        unit="checks", example="2", ge=1,
    )  # fmt: skip
    probe: Literal["ipc", "token"] = field(
        "ipc", "What a check of an idle worker is: a ping, or the generation of one token. A busy "
        "one is judged by the steps it makes.",
        example="token",
    )  # fmt: skip


class Restarts(Policy):
    max: int = field(
        5, "Restarts of one worker within the time; one more opens the breaker.",
        unit="restarts", example="20", ge=1, le=10_000,
    )  # fmt: skip
    per: Duration = field(
        "300s", "The time within which they count.", unit="duration", example="1h"
    )


class Backoff(Policy):
    base: Duration = field("2s", "Before the first restart.", unit="duration", example="500ms")
    factor: int = field(
        2, "How many times longer each further restart waits than the one before it.",
        unit="times", example="3", ge=1, le=10,
    )  # fmt: skip
    max: Duration = field(
        "60s", "The longest wait before a restart.", unit="duration", example="5m"
    )
    jitter: Share = field(
        "0%", "How much of each wait is left to chance.",
        unit="ratio", example="20%",
    )  # fmt: skip
    reset_after: Duration = field(
        "300s", "Time without a crash after which the count begins anew.",
        unit="duration", example="10m",
    )  # fmt: skip


class Breaker(Policy):
    failures: Auto | Positive = field(
        "auto", "The failure that opens it: the first crash and failed restarts count; auto is the "
        "first for which the smallest `max` of the budget has no restart left, so 6.",
        unit="failures", example="3",
    )  # fmt: skip
    open: Duration = field(
        "60s", "How long it stays open before a probe: one start, outside the budget.",
        unit="duration", example="30s",
    )  # fmt: skip
    half_open_probes: int = field(
        1, "Requests that may wait for a probe's worker; a delivered token closes the breaker.",
        unit="requests", example="2", ge=1,
    )  # fmt: skip
    probes: int = field(
        5, "Failed probes after which the model is quarantined.",
        unit="probes", example="3", ge=1,
    )  # fmt: skip
    quarantine: Duration = field(
        "1h", "How long a quarantined model is left alone, unless it is reset or its settings "
        "change.",
        unit="duration", example="10m",
    )  # fmt: skip


class Worker(Policy):
    health: Health = section("How a worker is known to be well.")
    budget: Annotated[tuple[Restarts, ...], Field(strict=False, min_length=1)] = field(
        ({},), "How often a worker may be restarted. Every window of the list holds.",
        example="[{max: 5, per: 300s}, {max: 20, per: 1h}]",
    )  # fmt: skip
    backoff: Backoff = section("How long a restart waits: base, times factor for each further one.")
    breaker: Breaker = section("When a worker that keeps failing is no longer started.")
    spares: Auto | Annotated[int, Field(ge=0, le=8)] = field(
        "auto", "Engine processes that are kept ready without a model, so that a load, and the one "
        "after a crash most of all, need not wait for a process to start. auto is 1, and 0 with "
        "less than 8 GiB of memory. From the warning mark on there are none.",
        unit="processes", example="2",
    )  # fmt: skip


class Replay(Policy):
    attempts: int = field(
        1, "How often a request that a crash interrupted is continued on another worker.",
        unit="attempts", example="2", ge=1, le=10,
    )  # fmt: skip
    when: Literal["any", "before_first_token", "off"] = field(
        "any", "Which requests are: any whose answer can be continued exactly, those of which "
        "the client has seen nothing, or none.",
        example="before_first_token",
    )  # fmt: skip


class Quarantine(Policy):
    kills: int = field(
        2, "Workers that died of a request before it is refused.",
        unit="workers", example="1", ge=1,
    )  # fmt: skip
    held: Duration = field(
        "1h", "How long an equal request is refused.",
        unit="duration", example="1d", alias="for",
    )  # fmt: skip


class Daemon(Policy):
    max_restarts: int = field(
        10, "Starts after an unclean end before the daemon serves without workers.",
        unit="starts", reload="restart", example="3", ge=1,
    )  # fmt: skip
    delay: Delay = field(
        "5s", "From an end until it serves again: what the service manager waits, and a second for "
        "the start. launchd waits for 10 s or more. Takes effect as the service is installed anew.",
        unit="duration", reload="restart", example="30s",
    )  # fmt: skip
    core_dumps: bool = field(
        False, "Whether the daemon and its workers may leave a core behind when they crash, as far "
        "as the system's own limit allows. It holds what was said to them. Workers have what holds "
        "as they start.",
        example="true",
    )  # fmt: skip
    watchdog: LongDuration = field(
        "30s", "How long the daemon may show no progress before it is restarted.",
        unit="duration", reload="restart", example="1m",
    )  # fmt: skip


class SleepWake(Policy):
    resume_grace: Delay = field(
        "20s", "How long after the machine woke up no worker counts as stalled.",
        unit="duration", example="1m",
    )  # fmt: skip
    prevent_idle_sleep: Literal["while_active", "always", "never"] = field(
        "while_active", "When the machine is kept from falling asleep by itself (macOS); the "
        "display may always sleep.",
        example="never",
    )  # fmt: skip


class Delivery(Policy):
    url: PublicUrl | None = field(
        None, "Where events are posted, as JSON. A URL that is a secret itself, or has a user or "
        "a query, goes behind `credential:NAME`. Of any other, its path is shown nowhere.",
        unit="URL", secret=True, example="https://ops.example/mlxd",
    )  # fmt: skip
    secret: Reference | None = field(
        None, "The key that signs what is posted (HMAC-SHA256): `credential:NAME`, or the "
        "absolute path of a file.",
        unit="reference", secret=True, example="credential:webhook",
    )  # fmt: skip
    timeout: Duration = field("5s", "How long one post may take.", unit="duration", example="2s")
    events: Annotated[tuple[Event, ...], Field(strict=False)] = field(
        get_args(Event), "Which kinds of events are posted.", example="[worker_down, breaker]"
    )


class Events(Policy):
    webhook: Delivery = section("Posts events to another program; without a URL, none.")


class Supervision(Policy):
    """How workers and the daemon are watched, restarted and given up."""

    worker: Worker = section("One worker for each model: how it is watched and replaced.")
    replay: Replay = section("What becomes of requests whose worker died.")
    quarantine: Quarantine = section("Requests that kill workers.")
    daemon: Daemon = section("The daemon, as launchd or systemd restarts it.")
    sleep_wake: SleepWake = section("A machine that falls asleep.")
    events: Events = section("What is told to other programs.")
