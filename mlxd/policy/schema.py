"""Every policy: what it means, its default, its unit and how a change of it takes effect.

One class per file of the policy folder. A field exists only if two sane operators would set it
differently. Reload classes: `live` the next decision uses it; `live-drain` shrinking stops no
request under way; `rebind` the new listener opens before the old one closes; `rolling` the workers
concerned are replaced one by one; `restart` waits for the next start, and is shown as pending;
`boot` is no policy: environment and flags only.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from mlxd.policy.units import Delay, Duration, KeepFor, Ratio, Size

Reload = Literal["live", "live-drain", "rebind", "rolling", "restart", "boot"]
Auto = Literal["auto"]


def field(
    default: Any,
    description: str,
    *,
    unit: str = "",
    reload: Reload = "live",
    enforced: bool = True,
    so_far: str = "",
    shown: bool = False,
    example: str = "",
    **bounds: Any,
) -> Any:
    """One policy. `shown`: clients see its value, so not enforcing it is worth a warning always.

    `so_far`: what follows it already, where it is not enforced yet.
    """
    extra: dict[str, Any] = {
        "unit": unit, "reload": reload, "enforced": enforced, "shown": shown, "example": example,
        "so_far": so_far,
    }  # fmt: skip
    return Field(default, description=description, json_schema_extra=extra, **bounds)


def section(description: str) -> Any:
    """A group of policies; absent, it is all defaults."""
    return Field({}, description=description)


def _host(text: str) -> str:
    """An address or a host name; what looks like an address must be one."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        if not re.fullmatch(r"(?![0-9.]+$)[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", text):
            raise ValueError(
                "expected an address or a host name alone, such as 127.0.0.1, ::1 or localhost"
            ) from None
    return text


def _name(text: str) -> str:
    if text != text.strip() or not 0 < len(text) <= 350 or not text.isprintable():
        raise ValueError("expected a name of 1 to 350 printable characters")
    return text


def _folder(text: str) -> str:
    if not (text.startswith(("/", "~/")) or text == "~") or "\0" in text:
        raise ValueError("expected an absolute path, or one under ~/")
    return text


@dataclass(frozen=True, slots=True)
class Takes:
    """What a type takes, in words, where its name does not say it."""

    words: str


Host = Annotated[str, AfterValidator(_host), Takes("an address or a host name")]
Name = Annotated[str, AfterValidator(_name), Takes("a name")]
Folder = Annotated[str, AfterValidator(_folder), Takes("an absolute path, or one under ~/")]
Names = Annotated[tuple[Name, ...], Field(strict=False)]
Folders = Annotated[tuple[Folder, ...], Field(strict=False)]
Positive = Annotated[int, Field(ge=1)]


class Policy(BaseModel):
    """What all of them share: frozen, no unknown keys, no guessing between types."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, validate_default=True, defer_build=True
    )


# server.yaml


class Listen(Policy):
    host: Host = field(
        "127.0.0.1",
        "The address to serve on. One that other machines can reach is refused unless "
        "`clients.auth.required: false` is written down. A name is taken by its IPv4 address "
        "where it has one: localhost is 127.0.0.1.",
        reload="rebind",
    )
    port: int = field(11435, "The TCP port to serve on.", reload="rebind", ge=1, le=65535)
    backlog: int = field(
        512, "Connections that the kernel holds until they are accepted.",
        unit="connections", reload="rebind", ge=1, le=65535,
    )  # fmt: skip

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost" or self.host.endswith(".localhost"):
            return True
        try:
            address = ipaddress.ip_address(self.host)
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        return bool((mapped or address).is_loopback)


class JsonLimits(Policy):
    max_depth: int = field(64, "How deep a body may nest.", unit="levels", ge=1, le=500)
    max_nodes: int = field(150_000, "How many values a body may hold in all.", unit="values", ge=1)
    max_string: Size = field("4MiB", "How long one string of a body may be.", unit="size")
    max_int_digits: int = field(
        100, "How many digits one integer of a body may have.", unit="digits", ge=1, le=4300
    )


class Http(Policy):
    keep_alive: Duration = field(
        "120s", "How long an idle connection stays open for the next request.", unit="duration"
    )
    header_timeout: Duration = field(
        "10s", "Time for a request's line and headers to arrive.", unit="duration"
    )
    body_idle_timeout: Duration = field(
        "15s", "Longest pause while a request's body arrives.", unit="duration"
    )
    body_total_timeout: Duration = field(
        "60s", "Time for the whole of a request's body to arrive.", unit="duration"
    )
    max_header_bytes: Size = field("16KiB", "All headers of a request together.", unit="size")
    max_headers: int = field(100, "Headers of one request.", unit="headers", ge=1)
    max_body: Size = field("8MiB", "A request's body; a larger one is refused (413).", unit="size")
    max_connections: int = field(
        512, "Open connections in all; idle ones count here and nowhere else.",
        unit="connections", reload="live-drain", ge=1,
    )  # fmt: skip
    json_limits: JsonLimits = section("The JSON of a body; beyond these it is refused (400).")


class Drain(Policy):
    grace: Delay = field(
        "30s", "How long requests under way may go on once the daemon stops.", unit="duration"
    )
    not_ready_delay: Delay = field(
        "2s", "Between /readyz saying 503 and the listener closing, if requests are under way.",
        unit="duration",
    )  # fmt: skip


class Log(Policy):
    level: Literal["debug", "info", "warning", "error"] = field("info", "The least that is logged.")
    format: Literal["json", "text"] = field("json", "One JSON object per line, or text for people.")


class Server(Policy):
    """Where and how the daemon listens."""

    listen: Listen = section("The listener.")
    http: Http = section("What a connection and a request may take.")
    drain: Drain = section("How the daemon stops.")
    log: Log = section("The daemon's log.")


# limits.yaml


class Concurrency(Policy):
    max_in_flight: int = field(
        5, "Generations at one time; one more is refused (503) or waits.",
        unit="requests", reload="live-drain", ge=1,
    )  # fmt: skip
    max_waiting: int = field(
        0, "Generations that may wait for a free slot; 0 refuses at once. How long they wait is "
        "`timeouts.queue`.",
        unit="requests", reload="live-drain", ge=0, enforced=False,
    )  # fmt: skip
    per_model: Mapping[Name, Positive] = field(
        {}, "Generations at one time of one model, by its name.",
        unit="requests", reload="live-drain", example='{"qwen2.5-coder:32b": 2}',
    )  # fmt: skip


class RateLimit(Policy):
    name: Name = field("per-ip", "What refusals and metrics call this limit.")
    key: Literal["client_ip"] = field("client_ip", "What is counted apart from each other.")
    requests: int = field(30, "Generations allowed in each window.", unit="requests", ge=1)
    window: Duration = field("60s", "The sliding window over which they count.", unit="duration")
    mode: Literal["enforce", "off"] = field("enforce", "Whether it refuses (429).")
    max_keys: int = field(
        100_000, "Clients remembered at one time; the longest silent is forgotten first.",
        unit="clients", ge=1,
    )  # fmt: skip


class Tokens(Policy):
    max_prompt: int = field(
        131_072, "Tokens of a prompt; a longer one is refused (400).", unit="tokens", ge=1
    )
    max_output: int = field(
        8192, "Tokens of an answer; a request for more is cut to this (finish `length`).",
        unit="tokens", ge=1,
    )  # fmt: skip


class Limits(Policy):
    """How much clients may ask for."""

    concurrency: Concurrency = section("How many generations run at one time.")
    rate_limit: Annotated[tuple[RateLimit, ...], Field(strict=False)] = field(
        ({},), "How often one client may ask. Every limit of the list holds; `[]` is none."
    )
    tokens: Tokens = section("How long prompts and answers may be.")


# timeouts.yaml


class Shutdown(Policy):
    term_grace: Duration = field("10s", "From a worker's SIGTERM to its SIGKILL.", unit="duration")


class Timeouts(Policy):
    """Every time limit on a request and on a worker."""

    generation: Duration = field(
        "300s", "From a worker's acceptance to the last token; then 504.", unit="duration"
    )
    queue: Duration = field(
        "30s", "Longest wait for a free slot; then 503.", unit="duration", enforced=False
    )
    first_byte: Duration = field(
        "10s", "After this the status line goes out even without a token, and an event stream "
        "is kept awake with comments.",
        unit="duration",
    )  # fmt: skip
    first_token: Duration = field(
        "120s", "From a worker's acceptance to the first token; then 504.", unit="duration"
    )
    inter_token_stall: Duration = field(
        "30s", "Longest pause between two tokens; then the worker counts as stalled.",
        unit="duration",
    )  # fmt: skip
    model_load: Duration = field(
        "300s", "Time for a model's worker to become ready; then 503.", unit="duration"
    )
    client_write: Duration = field(
        "30s", "Longest time a client may take nothing of its answer; then it is cancelled.",
        unit="duration",
    )  # fmt: skip
    worker_cancel_ack: Duration = field(
        "2s", "Time for a worker to confirm a cancel; then it counts as hung.", unit="duration"
    )
    shutdown: Shutdown = section("How workers are ended.")


# models.yaml


class ModelDefaults(Policy):
    ttl: KeepFor = field(
        "5m", "How long an unused model stays loaded, unless the request's keep_alive says "
        "otherwise; 0s unloads at once, `never` keeps it.",
        unit="duration",
    )  # fmt: skip
    context: Auto | Positive = field(
        "auto", "Tokens of prompt and answer together; auto is what the model was made for.",
        unit="tokens", reload="rolling",
    )  # fmt: skip


class Model(Policy):
    path: Folder | None = field(
        None, "The model's folder; without it, the one that the scan finds under this name.",
        reload="rolling", example="~/mlx-models/Qwen2.5-Coder-32B-Instruct-4bit",
    )  # fmt: skip
    aliases: Names = field((), "More names for it.", example="[coder]")
    ttl: KeepFor | None = field(
        None, "As `models.defaults.ttl`, for this model.", unit="duration", example="never"
    )
    context: Auto | Positive | None = field(
        None, "As `models.defaults.context`, for this model.",
        unit="tokens", reload="rolling", example="32768",
    )  # fmt: skip


CHAINS = ("default", "reasoning", "coding", "fast", "tiny")


def _with_all_chains(chains: Mapping[str, tuple[str, ...]]) -> Mapping[str, tuple[str, ...]]:
    return dict.fromkeys(CHAINS, ()) | dict(chains)


class Models(Policy):
    """Which models there are, what they are called and how long they stay."""

    dirs: Folders = field(
        ("~/mlx-models",), "Folders that are scanned for models; each model is one folder in them."
    )
    defaults: ModelDefaults = section("For every model that does not say otherwise.")
    max_loaded: Auto | Positive = field(
        "auto", "Models in memory at one time; auto lets memory decide.",
        unit="models", reload="live-drain",
    )  # fmt: skip
    chains: Annotated[Mapping[Name, Names], AfterValidator(_with_all_chains)] = field(
        {}, "Names that stand for the first available model of a list; an empty list is 404. "
        "default, reasoning, coding, fast and tiny are always there.",
        example='{coding: ["qwen2.5-coder:32b", "qwen2.5-coder:7b"]}',
    )  # fmt: skip
    models: Mapping[Name, Model] = field(
        {}, "Settings of single models, by name.", example='{"qwen2.5-coder:32b": {ttl: never}}'
    )

    @property
    def folders(self) -> tuple[Path, ...]:
        """`dirs`, with ~ as this user's home."""
        return tuple(Path(folder).expanduser() for folder in self.dirs)


# memory.yaml

_REPORTED = "only reported: nothing is evicted or refused by it yet"


class WarningMark(Policy):
    enter: Ratio = field(
        "85%", "Share of memory in use from which /health warns.",
        unit="ratio", enforced=False, so_far=_REPORTED, shown=True,
    )  # fmt: skip


class CriticalMark(Policy):
    enter: Ratio = field(
        "95%", "Share of memory in use above which idle models are dropped and none is loaded.",
        unit="ratio", enforced=False, so_far=_REPORTED, shown=True,
    )  # fmt: skip


class EmergencyMark(Policy):
    enter: Ratio = field(
        "98%", "Share of memory in use above which every unprotected model is dropped and the "
        "newest work cancelled.",
        unit="ratio", enforced=False, shown=True,
    )  # fmt: skip


class Watermarks(Policy):
    warning: WarningMark = section("The first mark.")
    critical: CriticalMark = section("The second mark.")
    emergency: EmergencyMark = section("The last mark.")


class Memory(Policy):
    """What happens as memory fills up."""

    check_interval: Duration = field(
        "10s", "Between two readings of memory.", unit="duration", enforced=False
    )
    watermarks: Watermarks = section("Shares of memory in use, strictly rising.")


# clients.yaml


class Auth(Policy):
    required: Auto | bool = field(
        "auto", "Whether clients need an API key; auto requires one unless only this machine can "
        "reach the daemon. Keys are not checked yet: true is refused, and false must be written "
        "down to listen beyond this machine.",
        enforced=False,
    )  # fmt: skip


class Hosts(Policy):
    allow: Names = field(
        (
            "localhost", "*.localhost", "*.local", "*.internal",
            "own-names", "loopback-addresses", "private-addresses",
        ),
        "Host headers that are answered while the daemon listens on loopback: names, where a "
        "leading `*.` stands for any labels; `own-names` are this machine's host name with "
        "and without its domain, `loopback-addresses` 127.0.0.0/8, ::1, 0.0.0.0 and ::, "
        "`private-addresses` those of private and link-local networks. Others get 403.",
    )  # fmt: skip


class Cors(Policy):
    allow_origins: Names = field(
        (
            "http://localhost:*", "https://localhost:*",
            "http://127.0.0.1:*", "https://127.0.0.1:*",
            "http://0.0.0.0:*", "https://0.0.0.0:*",
            "app://*", "file://*", "tauri://*", "vscode-webview://*", "vscode-file://*",
            "chrome-extension://*", "moz-extension://*", "safari-web-extension://*",
            "ms-browser-extension://*",
        ),
        "Origins of web pages that may ask. `:*` stands for any port and for none, `//*` for "
        "anything, `*` alone for every origin. Others get 403.",
    )  # fmt: skip


class Clients(Policy):
    """Who may ask."""

    auth: Auth = section("API keys.")
    hosts: Hosts = section("The guard against DNS rebinding.")
    cors: Cors = section("Web pages of other origins.")


class Policies(Policy):
    """All files together."""

    server: Server = section("Where and how the daemon listens.")
    limits: Limits = section("How much clients may ask for.")
    timeouts: Timeouts = section("Every time limit on a request and on a worker.")
    models: Models = section("Which models there are, what they are called, how long they stay.")
    memory: Memory = section("What happens as memory fills up.")
    clients: Clients = section("Who may ask.")


KINDS = tuple(Policies.model_fields)
