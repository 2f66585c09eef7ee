"""limits.yaml: how much clients may ask for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field

from mlxd.core.written_names import WrittenNames
from mlxd.policy.schema.base import (
    Auto,
    HeaderKey,
    Mode,
    Name,
    Policy,
    Positive,
    field,
    mode,
    section,
)
from mlxd.policy.units import Duration, Ratio, Size


class Concurrency(Policy):
    max_in_flight: int = field(
        5, "Generations at one time; one more is refused (503) or waits.",
        unit="requests", reload="live-drain", example="32", ge=1,
    )  # fmt: skip
    max_waiting: int = field(
        0, "Generations that may wait for a free slot; 0 refuses at once. How long they wait is "
        "`timeouts.queue`.",
        unit="requests", reload="live-drain", example="20", ge=0,
    )  # fmt: skip
    max_waiting_tokens: int = field(
        2_000_000, "Tokens of prompts and answers that are expected of all that wait together; a "
        "request that would make them more is refused, unless it is the only one.",
        unit="tokens", reload="live-drain", example="500000", ge=1,
    )  # fmt: skip
    affinity: int = field(
        4, "How often a waiting request may be passed by others of its class whose model is in "
        "memory while its own is not; 0 keeps the order. Fewer swaps, a bounded wait.",
        unit="requests", example="16", ge=0, le=1000,
    )  # fmt: skip
    mode: Mode = mode(
        "What being over max_in_flight, per_model or a class's max_share does; a tenant's own "
        "max_in_flight holds in any mode."
    )
    retry_after: Auto | Duration = field(
        "auto", "What Retry-After tells a refused client; auto is when a slot is expected to "
        "be free, from 1 to 30 s.",
        unit="duration", example="5s",
    )  # fmt: skip
    per_model: Mapping[Name, Positive] = field(
        {}, "Generations at one time of one model, by its name: the folder's, its last part, or "
        "the short name, as in `models.models`.",
        unit="requests", reload="live-drain", example='{"qwen2.5-coder:32b": 2}',
    )  # fmt: skip

    @cached_property
    def written(self) -> WrittenNames:
        """The names in `per_model`."""
        return WrittenNames(self.per_model)


class RateLimit(Policy):
    name: Name = field(
        "per-client", "What refusals and metrics call this limit.", example="everyone"
    )
    key: Literal["client", "client_ip", "api_key", "user"] | HeaderKey = field(
        "client",
        "What is counted apart from each other: `client` is the API key, or the address of who has "
        "none; `client_ip` the address always (of IPv6 the /64); `api_key` only those with a key; "
        "`user` what the request says it is for; `header:NAME` the values of a header. Who has no "
        "such thing is not counted by that rule: `user` and headers are the client's own words.",
        example="client_ip",
    )
    requests: int = field(
        30, "Generations allowed in each window.", unit="requests", example="120", ge=1
    )
    window: Duration = field(
        "60s", "The window over which they count.", unit="duration", example="1h"
    )
    algorithm: Literal["sliding_window", "token_bucket", "gcra"] = field(
        "sliding_window", "How they count: sliding_window lets as many through in any window, "
        "exactly; token_bucket lets a saved-up quota of them go at once and fills it up evenly, so "
        "that one window may see twice as many; gcra lets one through every `window` / `requests`, "
        "and saves nothing up. What has counted under one counts under another after an edit.",
        example="gcra",
    )  # fmt: skip
    mode: Mode = mode("What being over it does (429).")
    max_keys: int = field(
        100_000, "Clients remembered at one time; the longest silent is forgotten first.",
        unit="clients", example="1000", ge=1,
    )  # fmt: skip


class Tokens(Policy):
    max_prompt: int = field(
        131_072, "Tokens of a prompt; a longer one is refused (400).",
        unit="tokens", example="32768", ge=1,
    )  # fmt: skip
    max_output: int = field(
        8192, "Tokens of an answer; a request for more is cut to this (finish `length`).",
        unit="tokens", example="4096", ge=1,
    )  # fmt: skip
    mode: Mode = mode("What being over max_prompt does; max_output cuts in every mode.")
    max_batch_tokens: Auto | Positive = field(
        "auto", "Tokens of prompts that one step of a model reads at most; auto is what memory is "
        "counted for: 2048, and 1024 beside running answers. More than that are never read. With "
        "quantised caches (kv_bits) it is 512 whatever this says: other pieces give other texts.",
        unit="tokens", example="1024",
    )  # fmt: skip


class Batching(Policy):
    stall_target: Duration = field(
        "100ms", "How long prompts are read at one time, about: so long running answers stand "
        "still, and so long a short prompt waits that comes meanwhile. While `limits.adaptive` is "
        "enabled, half of its token_gap at most.",
        unit="duration", example="50ms",
    )  # fmt: skip
    min_chunk: int = field(
        32, "Tokens of prompts that are read at one time, however long they take.",
        unit="tokens", example="64", ge=1, le=2048,
    )  # fmt: skip
    decode_share: Ratio = field(
        "5%", "Of the time, what running answers have between the chunks of a long prompt; one "
        "token for each between two chunks they have in any case. At most 90%.",
        unit="ratio", example="30%", le=0.9,
    )  # fmt: skip


class Adaptive(Policy):
    enabled: bool = field(
        False, "Whether the number of generations at one time follows what is measured of answers. "
        "`limits.concurrency.max_in_flight` stays the most. While an aim is missed, requests of "
        "class low that cannot run at once are refused (503); if the fewest generations miss it "
        "again, those of class medium are, too.",
        example="true",
    )  # fmt: skip
    min: int = field(
        1, "The fewest generations at one time that it allows.",
        unit="requests", example="2", ge=1,
    )  # fmt: skip
    max: int = field(
        5, "The most generations at one time that it allows; it begins with so many.",
        unit="requests", example="32", ge=1,
    )  # fmt: skip
    ttft: Duration = field(
        "5s",
        "The time to first token that is aimed for, once a request has its slot and its model "
        "is loaded.",
        unit="duration", example="2s",
    )  # fmt: skip
    token_gap: Duration = field(
        "200ms", "The time between two tokens of an answer that is aimed for.",
        unit="duration", example="100ms",
    )  # fmt: skip
    percentile: Ratio = field(
        "90%", "Of the latencies of an interval, which one has to be within the aims; 50% is their "
        "median.",
        unit="ratio", example="50%",
    )  # fmt: skip
    interval: Duration = field(
        "10s", "How often it decides anew: one more after an interval within the aims in which all "
        "were in use, a quarter fewer after one beyond them.",
        unit="duration", example="30s",
    )  # fmt: skip


class Responses(Policy):
    store: Literal["memory", "off"] = field(
        "memory", "Where answers of /v1/responses are kept for clients that come back to them "
        "(`previous_response_id`, GET /v1/responses/ID): in memory, as long as the daemon runs; "
        "off keeps none. A client's own `store: false` keeps that one answer from being kept.",
        example="off",
    )  # fmt: skip
    max_count: int = field(
        1000, "Answers that are kept; the oldest are forgotten first.",
        unit="responses", example="100", ge=1,
    )  # fmt: skip
    max_bytes: Size = field(
        "64MiB", "Answers and what led to them, together; those of the client that takes the most "
        "are forgotten first, from the oldest on. An answer that alone is larger is not kept.",
        unit="size", example="256MiB",
    )  # fmt: skip
    ttl: Duration = field(
        "24h", "How long an answer is kept.", unit="duration", example="1h"
    )  # fmt: skip


class Limits(Policy):
    """How much clients may ask for."""

    concurrency: Concurrency = section("How many generations run at one time.")
    rate_limit: Annotated[tuple[RateLimit, ...], Field(strict=False)] = field(
        ({},), "How often one client may ask. Every limit of the list holds; `[]` is none.",
        example="[{requests: 10, window: 1s}]",
    )  # fmt: skip
    tokens: Tokens = section("How long prompts and answers may be.")
    batching: Batching = section("How prompts are read beside running answers.")
    choices: int = field(
        16, "Answers that one request may ask for, over all of its prompts (OpenAI's `n` and "
        "`best_of`, several prompts); one for more is refused (400). It counts once and takes one "
        "slot, so this bounds what a slot can be used for.",
        unit="answers", example="4", ge=1, le=2048,
    )  # fmt: skip
    adaptive: Adaptive = section("A concurrency limit that finds its own value.")
    responses: Responses = section(
        "Answers of OpenAI's responses API that are kept for the client that asked."
    )
