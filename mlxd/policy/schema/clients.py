"""clients.yaml: who may ask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from mlxd.policy.schema.base import (
    Auto,
    Headers,
    Mode,
    Name,
    Names,
    Networks,
    Policy,
    Positive,
    Priority,
    field,
    mode,
    section,
)
from mlxd.policy.schema.references import Reference
from mlxd.policy.units import Duration, Ratio


class Auth(Policy):
    required: Auto | bool = field(
        "auto", "Whether clients need an API key; auto requires one unless only this machine can "
        "reach the daemon. Keys are not checked yet: true is refused, and false must be written "
        "down to listen beyond this machine.",
        enforced=False, example="false",
    )  # fmt: skip
    keys_file: Reference = field(
        "credential:api-keys", "Where the keys are: `credential:NAME`, or the absolute path of a "
        "file. The file holds hashes and the tenant of each key.",
        unit="reference", enforced=False, secret=True, example="/etc/mlxd/api-keys",
    )  # fmt: skip
    headers: Headers = field(
        ("authorization", "x-api-key"), "Headers in which a key is looked for, in this order.",
        enforced=False, example="[authorization]",
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
        example="[localhost, loopback-addresses, studio.example]",
    )  # fmt: skip
    mode: Mode = mode("What a Host that is not listed meets (403).")


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
        example='["https://chat.example", "http://localhost:*"]',
    )  # fmt: skip
    mode: Mode = mode("What an Origin that is not listed meets (403).")
    allow_credentials: bool = field(
        False, "Whether web pages may send cookies and the like along.",
        enforced=False, example="true",
    )  # fmt: skip


def _weight(default: int, example: str) -> Any:
    return field(
        default, "Its share of free slots while all classes wait, against the others' weights.",
        unit="shares", reload="live-drain", enforced=False, example=example, ge=1, le=1000,
    )  # fmt: skip


def _shed_at(default: str, example: str) -> Any:
    return field(
        default, "The memory watermark from which its new requests are refused.",
        reload="live-drain", enforced=False, example=example,
    )  # fmt: skip


Shed = Literal["never", "warning", "critical", "emergency"]


class Class(Policy):
    """A priority class; each has a `weight` and a `shed_at` of its own."""

    weight: int
    max_share: Ratio = field(
        "100%", "The most of all slots that it may hold at one time.",
        unit="ratio", reload="live-drain", enforced=False, example="50%",
    )  # fmt: skip
    queue: int = field(
        50, "Its requests that may wait at one time, within `limits.concurrency.max_waiting`.",
        unit="requests", reload="live-drain", enforced=False, example="10", ge=0,
    )  # fmt: skip
    borrow: bool = field(
        True, "Whether it may use slots that the other classes leave free.",
        reload="live-drain", enforced=False, example="false",
    )  # fmt: skip
    shed_at: Shed


class High(Class):
    weight: int = _weight(8, "16")
    shed_at: Shed = _shed_at("never", "emergency")


class Medium(Class):
    weight: int = _weight(3, "4")
    shed_at: Shed = _shed_at("never", "emergency")


class Low(Class):
    weight: int = _weight(1, "2")
    shed_at: Shed = _shed_at("critical", "warning")


class Priorities(Policy):
    high: High = section("For what a person waits for.")
    medium: Medium = section("For what names no class.")
    low: Low = section("For what can wait.")


class Tenant(Policy):
    weight: int = field(
        1, "Its share against the other tenants of its class.",
        unit="shares", enforced=False, example="4", ge=1, le=1000,
    )  # fmt: skip
    priority: Priority | None = field(
        None, "The class of all its requests, whatever X-Request-Priority says.",
        enforced=False, example="low",
    )  # fmt: skip
    max_in_flight: Positive | None = field(
        None, "Its generations at one time.",
        unit="requests", reload="live-drain", enforced=False, example="2",
    )  # fmt: skip
    requests: Positive | None = field(
        None, "Its generations in each window.", unit="requests", enforced=False, example="600"
    )
    window: Duration = field(
        "60s", "The window over which its `requests` count.",
        unit="duration", enforced=False, example="1h",
    )  # fmt: skip
    daily_tokens: Positive | None = field(
        None, "Tokens of its prompts and answers together in a day (UTC).",
        unit="tokens", enforced=False, example="5000000",
    )  # fmt: skip
    max_context: Positive | None = field(
        None, "Tokens of prompt and answer together, for its requests.",
        unit="tokens", enforced=False, example="16384",
    )  # fmt: skip
    max_output: Positive | None = field(
        None, "As `limits.tokens.max_output`, for its requests.",
        unit="tokens", enforced=False, example="2048",
    )  # fmt: skip
    models: Names = field(
        (), "The models it may use, where `*` stands for any text; `[]` is all.",
        enforced=False, example='["qwen2.5-coder:*"]',
    )  # fmt: skip


class Clients(Policy):
    """Who may ask."""

    auth: Auth = section("API keys.")
    hosts: Hosts = section("The guard against DNS rebinding.")
    cors: Cors = section("Web pages of other origins.")
    manage_models: Literal["loopback", "never", "any"] = field(
        "loopback", "Who may pull, copy and delete models over HTTP, as Ollama's API has it: "
        "loopback is this machine while only it can reach the daemon, not through a proxy; never "
        "leaves it to `mlxd` on the admin socket. A proxy on this machine that adds none "
        "of Forwarded, X-Forwarded-For, X-Real-IP and Via makes everybody behind it this machine: "
        "set never there. Loading and unloading is everybody's.",
        example="never",
    )  # fmt: skip
    trusted_proxies: Networks = field(
        (), "Networks of proxies whose X-Forwarded-For is believed.",
        enforced=False, example='[127.0.0.1, 10.0.0.0/8, "fd00::/8"]',
    )  # fmt: skip
    priorities: Priorities = section(
        "The classes that X-Request-Priority names. Those that wait the longest move up, so low "
        "never starves."
    )
    tenants: Mapping[Name, Tenant] = field(
        {}, "Limits of single tenants, by the name that `clients.auth.keys_file` gives their keys.",
        enforced=False, example="{agents: {max_in_flight: 2}}",
    )  # fmt: skip
