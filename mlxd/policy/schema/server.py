"""server.yaml: where and how the daemon listens."""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import Literal

from mlxd.policy.schema.base import Auto, Folder, Host, Name, Policy, Positive, field, section
from mlxd.policy.schema.references import PublicUrl
from mlxd.policy.units import Delay, Duration, Share, Size


class Listen(Policy):
    host: Host = field(
        "127.0.0.1",
        "The address to serve on. One that other machines can reach is refused unless there is an "
        "API key (`mlxd keys add`) or `clients.auth.required: false` is written down. A name is "
        "taken by its IPv4 address where it has one: localhost is 127.0.0.1.",
        reload="rebind", example='"::1"',
    )  # fmt: skip
    port: int = field(
        11435, "The TCP port to serve on.", reload="rebind", example="11500", ge=1, le=65535
    )
    backlog: int = field(
        512, "Connections that the kernel holds until they are accepted.",
        unit="connections", reload="rebind", example="1024", ge=1, le=65535,
    )  # fmt: skip
    linger: Delay = field(
        "30s", "How long the previous address goes on accepting connections after `host` or "
        "`port` changed.",
        unit="duration", example="5m",
    )  # fmt: skip
    inherit: Literal["auto", "never"] = field(
        "auto", "Whether a listener named `http` that launchd or systemd hands over is served: "
        "auto serves it where there is one, and host and port are then theirs to say; never "
        "leaves it alone, and host and port are served.",
        reload="restart", example="never",
    )  # fmt: skip

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.host)


@lru_cache(32)
def is_loopback(host: str) -> bool:
    """Whether only this machine can reach such a host."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


class JsonLimits(Policy):
    max_depth: int = field(
        64, "How deep a body may nest.", unit="levels", example="32", ge=1, le=500
    )
    max_nodes: int = field(
        150_000, "How many values a body may hold in all.", unit="values", example="50000", ge=1
    )
    max_string: Size = field(
        "4MiB", "How long one string of a body may be.", unit="size", example="1MiB"
    )
    max_int_digits: int = field(
        100, "How many digits one integer of a body may have; a fraction may always have 19.",
        unit="digits", example="20", ge=1, le=4300,
    )  # fmt: skip


class Http(Policy):
    keep_alive: Duration = field(
        "120s", "How long an idle connection stays open for the next request.",
        unit="duration", example="5m",
    )  # fmt: skip
    header_timeout: Duration = field(
        "10s", "Time for a request's line and headers to arrive.", unit="duration", example="5s"
    )
    body_idle_timeout: Duration = field(
        "15s", "Longest pause while a request's body arrives.", unit="duration", example="30s"
    )
    body_total_timeout: Duration = field(
        "60s", "Time for the whole of a request's body to arrive.", unit="duration", example="2m"
    )
    max_header_bytes: Size = field(
        "16KiB", "All headers of a request together; a raised value holds for new connections.",
        unit="size", example="32KiB",
    )  # fmt: skip
    max_headers: int = field(
        100, "Headers of one request; a raised value holds for new connections.",
        unit="headers", example="200", ge=1,
    )  # fmt: skip
    max_body: Size = field(
        "8MiB", "A request's body; a larger one is refused (413).", unit="size", example="32MiB"
    )
    max_connections: int = field(
        512, "Open connections in all; idle ones count here and nowhere else. A new one beyond "
        "takes the place of one whose request does not go on coming, else of one that is idle.",
        unit="connections", reload="live-drain", example="2048", ge=1,
    )  # fmt: skip
    per_ip: Auto | Positive = field(
        "auto", "Open connections of one client address (an IPv6 /64 is one); of an address behind "
        "a trusted proxy, its requests under way. One more is refused (503). auto is 64, and "
        "leaves this machine's own addresses without a limit.",
        unit="connections", reload="live-drain", example="16",
    )  # fmt: skip
    json_limits: JsonLimits = section("The JSON of a body; beyond these it is refused (400).")


class Drain(Policy):
    grace: Delay = field(
        "30s", "How long requests under way may go on once the daemon stops.",
        unit="duration", example="2m",
    )  # fmt: skip
    not_ready_delay: Delay = field(
        "2s", "Between /readyz saying 503 and the listener closing, if requests are under way or a"
        " balancer asks /readyz; new requests are served meanwhile.",
        unit="duration", example="10s",
    )  # fmt: skip


class Rotation(Policy):
    size: Size = field(
        "100MiB", "How large the log file grows before a new one is begun.",
        unit="size", example="1GiB",
    )  # fmt: skip
    keep: int = field(
        5, "Finished log files that are kept; the oldest is deleted first.",
        unit="files", example="20", ge=0, le=1000,
    )  # fmt: skip


class Log(Policy):
    level: Literal["debug", "info", "warning", "error"] = field(
        "info", "The least that is logged.", example="debug"
    )
    format: Literal["json", "text"] = field(
        "json", "One JSON object per line, or text for people.", example="text"
    )
    file: Literal["auto", "none"] | Folder = field(
        "auto", "A file of the daemon's own for the log; none is stderr. auto is `mlxd.log` in "
        "`MLXD_LOGS`, or in the logs folder that a service manager without a journal names (under "
        "launchd ~/Library/Logs/mlxd), and stderr where there is none.",
        example="/var/log/mlxd/mlxd.log",
    )  # fmt: skip
    rotate: Rotation = section("Where the log is a file of the daemon's own.")


class Traffic(Policy):
    record: bool = field(
        False, "Whether each generation is written down for `mlxd policy simulate`: when it came, "
        "for whom, of which model, its sizes and times, and what came of it. Never what it says.",
        example="true",
    )  # fmt: skip
    folder: Auto | Folder = field(
        "auto", "Where; auto is `traffic` in the state folder.", example="/var/lib/mlxd/traffic"
    )
    rotate: Rotation = section("How much of it is kept.")


class Traces(Policy):
    endpoint: PublicUrl | None = field(
        None, "The OTLP/HTTP receiver that traces of requests are sent to, such as an "
        "OpenTelemetry collector; without a path, its /v1/traces. It takes `pip install "
        "'mlxd[otel]'`. A URL that is a secret itself, or has a user or a query, goes behind "
        "`credential:NAME`. Of any other, its path is shown nowhere.",
        unit="URL", secret=True, example="http://127.0.0.1:4318",
    )  # fmt: skip
    sample: Share = field(
        "100%", "How many requests are traced that say nothing of it. Of those with a "
        "`traceparent`, the ones that it says are sampled.",
        unit="ratio", example="5%",
    )  # fmt: skip
    service: Name = field(
        "mlxd", "What the daemon is called in traces (`service.name`).", example="mlxd-studio"
    )


class Resume(Policy):
    window: Delay = field(
        "60s", "How long a client may come back to an answer whose connection was cut, or to the "
        "end of one that may not have arrived. 0s keeps nothing, and gives events no ids.",
        unit="duration", example="5m",
    )  # fmt: skip
    max_bytes: Size = field(
        "64MiB", "What is kept for that, in memory, together with what is told of answers under "
        "way. Answers that ended go before those that were cut; of either, those of the client "
        "that takes the most, from the oldest on.",
        unit="size", example="256MiB",
    )  # fmt: skip
    max_count: int = field(
        256, "Answers that are kept for that; which go first is as for `max_bytes`.",
        unit="answers", example="1024", ge=1,
    )  # fmt: skip
    attach: Literal["sure", "always", "off"] = field(
        "sure", "Whether a request that equals one which was cut, of the same client, goes on with "
        "its answer, told from the beginning. sure: where anew it would be told the same (greedy, "
        "or with a seed of its own), or its client says that it is a retry "
        "(X-Stainless-Retry-Count); always: whatever it asks; off: only `Last-Event-ID` goes on "
        "with anything.",
        example="always",
    )  # fmt: skip
    ids: Literal["always", "asked"] = field(
        "always", "Which streams have ids on their events, for `Last-Event-ID`. always: all; "
        "asked: those of clients that ask for events (Accept: text/event-stream). Some programs "
        "that measure servers read no ids, and fail at them.",
        example="asked",
    )  # fmt: skip


class Server(Policy):
    """Where and how the daemon listens."""

    listen: Listen = section("The listener.")
    http: Http = section("What a connection and a request may take.")
    drain: Drain = section("How the daemon stops.")
    log: Log = section("The daemon's log.")
    traffic: Traffic = section("A log of what was asked, for simulations.")
    traces: Traces = section(
        "Spans of requests, sent to another program; without a receiver, none."
    )
    resume: Resume = section("Answers whose connection was cut, for their clients to come back to.")
    page: bool = field(
        True, "Whether the page at /ui is served. While only this machine can reach the daemon, no "
        "client needs a key and no tenant has `admin`, the page may do what the admin socket does: "
        "a browser here is given a token for that; other users of this machine are not, where the "
        "system tells whose a connection is (Linux).",
        example="false",
    )  # fmt: skip
    stories: int = field(
        500, "Requests whose story is remembered for `mlxd explain`, beside those under way.",
        unit="requests", example="5000", ge=0, le=100_000,
    )  # fmt: skip
