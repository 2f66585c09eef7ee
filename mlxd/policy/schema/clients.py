"""clients.yaml: who may ask."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

from mlxd.core import wildcard
from mlxd.core.caller import Priority
from mlxd.core.models import canonical
from mlxd.policy.schema.base import (
    Auto,
    Count,
    Headers,
    HostPatterns,
    Mode,
    Name,
    Names,
    Networks,
    OriginPatterns,
    Policy,
    Positive,
    field,
    mode,
    section,
)
from mlxd.policy.schema.references import Reference
from mlxd.policy.units import Duration, Ratio


class Guesses(Policy):
    max: int = field(
        10, "Unknown API keys from one address within the window, where keys are required; then "
        "the address is refused (429), whatever key it has, but for one that it came with before. "
        "The same one again counts once. A key that has expired or was revoked is not unknown.",
        unit="requests", example="5", ge=1, le=1000,
    )  # fmt: skip
    window: Duration = field(
        "60s", "The window over which they count.", unit="duration", example="10m"
    )
    penalty: Duration = field(
        "60s", "How long such an address is refused.", unit="duration", example="15m"
    )


class Auth(Policy):
    required: Auto | bool = field(
        "auto", "Whether clients need an API key (401); auto requires one unless only this machine "
        "can reach the daemon. Where none is required, a key that is known still says whose tenant "
        "a request is, and any other is as good as none.",
        example="true",
    )  # fmt: skip
    keys_file: Auto | Reference = field(
        "auto", "Where the keys are: `credential:NAME`, or the absolute path of a file; auto is "
        "`keys.yaml` in the state folder, which `mlxd keys` writes. The file holds a hash and the "
        "tenant of each key, never the key itself; it is read anew when it changes.",
        unit="reference", secret=True, example="/etc/mlxd/api-keys",
    )  # fmt: skip
    headers: Headers = field(
        ("authorization", "x-api-key"), "Headers in which a key is looked for, in this order.",
        example="[authorization]",
    )  # fmt: skip
    guesses: Guesses = section("What guessing keys costs.")


class Hosts(Policy):
    allow: HostPatterns = field(
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
    allow_origins: OriginPatterns = field(
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
        False, "Whether pages of the origins that are listed may send credentials along (cookies, "
        "HTTP authentication, client certificates), for a proxy that asks for them. Not where the "
        "list has a pattern that every origin matches.",
        example="true",
    )  # fmt: skip


def _weight(default: int, example: str) -> Any:
    return field(
        default, "Its share of free slots while all classes wait, against the others' weights.",
        unit="shares", reload="live-drain", example=example, ge=1, le=1000,
    )  # fmt: skip


def _shed_at(default: str, example: str) -> Any:
    return field(
        default, "The memory watermark from which its new requests are refused (503), while one "
        "with the action shed_low_priority holds. Those that wait or run go on.",
        reload="live-drain", example=example,
    )  # fmt: skip


Shed = Literal["never", "warning", "critical", "emergency"]


class Class(Policy):
    """A priority class; each has a `weight` and a `shed_at` of its own."""

    weight: int
    max_share: Ratio = field(
        "100%", "The most of all slots that it may hold at one time; refuses as "
        "`limits.concurrency.mode` has it.",
        unit="ratio", reload="live-drain", example="50%",
    )  # fmt: skip
    queue: Auto | Count = field(
        "auto", "Its requests that may wait at one time, within `limits.concurrency.max_waiting`; "
        "auto is as many as that lets wait.",
        unit="requests", reload="live-drain", example="10",
    )  # fmt: skip
    borrow: bool = field(
        True, "Whether it may use slots that the other classes leave free; refuses as "
        "`limits.concurrency.mode` has it.",
        reload="live-drain", example="false",
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
    ageing: Duration = field(
        "20s", "A class that has waited so long without getting a slot gets the next one, whatever "
        "the weights say: so none starves.",
        unit="duration", example="1m",
    )  # fmt: skip
    high: High = section("For what a person waits for.")
    medium: Medium = section("For what names no class.")
    low: Low = section("For what can wait.")


class Tenant(Policy):
    weight: int = field(
        1, "Its share against the other clients of its class, counted in tokens.",
        unit="shares", example="4", ge=1, le=1000,
    )  # fmt: skip
    priority: Priority = field(
        "medium", "The class of its requests that name none, within its `max_priority`.",
        example="low",
    )  # fmt: skip
    max_priority: Priority = field(
        "high", "The highest class that its requests may have; who asks for more gets this.",
        example="medium",
    )  # fmt: skip
    max_in_flight: Positive | None = field(
        None, "Its generations at one time, whatever `limits.concurrency.mode` is; one more waits, "
        "or is refused (429) where nobody may.",
        unit="requests", reload="live-drain", example="2",
    )  # fmt: skip
    requests: Positive | None = field(
        None, "Its generations in each window, beside `limits.rate_limit` (429).",
        unit="requests", example="600",
    )  # fmt: skip
    tokens: Positive | None = field(
        None, "Tokens of its prompts and answers together in any window, counted when a request "
        "ends; once they are used up, its next request is refused (429). None is cut for it.",
        unit="tokens", example="200000",
    )  # fmt: skip
    window: Duration = field(
        "60s", "The window over which its `requests` and `tokens` count.",
        unit="duration", example="1h",
    )  # fmt: skip
    daily_tokens: Positive | None = field(
        None, "As `tokens`, for a day (UTC) and over restarts: at midnight it begins anew.",
        unit="tokens", example="5000000",
    )  # fmt: skip
    max_context: Positive | None = field(
        None, "Tokens of prompt and answer together, for each of its requests; a longer prompt is "
        "refused (400), a longer answer is cut.",
        unit="tokens", example="16384",
    )  # fmt: skip
    max_output: Positive | None = field(
        None, "As `limits.tokens.max_output`, for its requests.", unit="tokens", example="2048"
    )
    models: Names = field(
        (), "The models it may use, by any of their names, where `*` stands for any text (403), "
        "and that its lists of models show; `[]` is all.",
        example='["qwen2.5-coder:*"]',
    )  # fmt: skip
    max_keep_alive: Duration | None = field(
        None, "How long its requests may have a model kept in memory behind them; a longer "
        "`keep_alive` is cut to this.",
        unit="duration", example="10m",
    )  # fmt: skip
    admin: bool = field(
        False, "Whether its keys may use the admin side over HTTP, as the page at /ui does: every "
        "path of /admin. Once a tenant may, the page asks for such a key and is given no token.",
        example="true",
    )  # fmt: skip
    unload: bool = field(
        True, "Whether it may have models unloaded before policy would (`keep_alive: 0`, or one "
        "that is shorter than the model's `ttl`); otherwise that is ignored.",
        example="false",
    )  # fmt: skip

    @cached_property
    def allowed(self) -> wildcard.Patterns:
        """`models`, in the form in which names are compared."""
        return wildcard.Patterns(map(canonical, self.models))


class Clients(Policy):
    """Who may ask."""

    auth: Auth = section("API keys.")
    hosts: Hosts = section("The guard against DNS rebinding.")
    cors: Cors = section("Web pages of other origins.")
    manage_models: Literal["loopback", "never", "any"] = field(
        "loopback", "Who may pull, copy and delete models over HTTP, as Ollama's API has it: "
        "loopback is this machine while only it can reach the daemon, not through a proxy; never "
        "leaves it to `mlxd` on the admin socket. A proxy on this machine that asks in HTTP/1.1 "
        "and adds none of Forwarded, Via, X-Forwarded-*, X-Real-IP, X-Client-IP, True-Client-IP "
        "and CF-Connecting-IP makes everybody behind it this machine: set never there. Loading "
        "and unloading is everybody's.",
        example="never",
    )  # fmt: skip
    trusted_proxies: Networks = field(
        (), "Networks of proxies whose X-Forwarded-For is believed.",
        example='[127.0.0.1, 10.0.0.0/8, "fd00::/8"]',
    )  # fmt: skip
    priorities: Priorities = section(
        "The classes that X-Request-Priority names. They share the slots by their weights while "
        "all of them wait."
    )
    tenants: Mapping[Name, Tenant] = field(
        {}, "Limits of single tenants, by the name that `clients.auth.keys_file` gives their keys; "
        "one that is not listed has the defaults of these. All keys of a tenant are one client. "
        "`anonymous` are those without a key, each address for itself.",
        example="{agents: {max_in_flight: 2}}",
    )  # fmt: skip
