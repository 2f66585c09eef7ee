"""models.yaml: which models there are, what they are called and how long they stay."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from mlxd.core import places
from mlxd.core.written_names import WrittenNames
from mlxd.policy.schema.base import (
    Auto,
    Folder,
    Folders,
    Name,
    Names,
    Patterns,
    Policy,
    Positive,
    Url,
    field,
    section,
)
from mlxd.policy.units import Delay, Duration, KeepFor, Size


class ModelDefaults(Policy):
    ttl: KeepFor = field(
        "5m", "How long an unused model stays loaded, unless the request's keep_alive says "
        "otherwise; 0s unloads at once, `never` keeps it.",
        unit="duration", example="1h",
    )  # fmt: skip
    context: Auto | Positive = field(
        "auto", "Tokens of prompt and answer together; auto is what the model was made for. "
        "Requests under way keep theirs.",
        unit="tokens", example="32768",
    )  # fmt: skip
    max_concurrency: Literal["inherit"] | Positive = field(
        "inherit", "Generations at one time of each model; inherit leaves it to "
        "`limits.concurrency`, whose per_model wins where both name a number.",
        unit="requests", reload="live-drain", example="4",
    )  # fmt: skip
    verify: Literal["none", "header", "sha256"] = field(
        "header", "What is checked of a model's files before they are loaded: nothing, that the "
        "headers fit the files, or every byte against the checksums that a hub's cache, its notes "
        "of a download or a `SHA256SUMS` in the folder record. What fails is shown as unavailable "
        "and not loaded.",
        example="sha256",
    )  # fmt: skip


SAMPLING: Mapping[str, tuple[float, float]] = {
    "temperature": (0, 100),
    "top_p": (0, 1),
    "top_k": (0, 2**31),
    "min_p": (0, 1),
    "repeat_penalty": (0.01, 100),
}
"""What a model's entry may set, and within which bounds."""
_COUNTS = ("top_k",)
"""Those of them that are integers."""
SamplingName = Literal["temperature", "top_p", "top_k", "min_p", "repeat_penalty"]


def _sampling(values: Mapping[str, float]) -> Mapping[str, float]:
    for name, value in values.items():
        low, high = SAMPLING[name]
        if not low <= value <= high:
            raise ValueError(f"expected a {name} from {low:g} to {high:g}, got {value:g}")
        if name in _COUNTS and not value.is_integer():
            raise ValueError(f"expected a {name} that is an integer, got {value:g}")
    return values


class Prefixes(Policy):
    keep: Patterns = field(
        (), "System prompts, as the whole of their text, where `*` stands for any text: what was "
        "computed of these leaves memory and disk last.",
        example='["You are a coding agent*"]',
    )  # fmt: skip
    warm: Folders = field(
        (), "Files of system prompts that are computed once after each load, when nothing else is "
        "to be done, and kept like `keep`: a text, or as NAME.json an object with `messages` and "
        "perhaps `tools`, as /v1/chat/completions takes them.",
        example="[~/prompts/agent.txt]",
    )  # fmt: skip


class Model(Policy):
    path: Folder | None = field(
        None, "The model's folder; without it, the one that the scan finds under this name.",
        reload="rolling", example="~/mlx-models/Qwen2.5-Coder-32B-Instruct-4bit",
    )  # fmt: skip
    aliases: Names = field(
        (), "More names for it, where `*` stands for any text: of several that fit, the one with "
        "the longest text before its `*` counts, and a model's own name before all of them.",
        example='[coder, "claude-*"]',
    )  # fmt: skip
    ttl: KeepFor | None = field(
        None, "As `models.defaults.ttl`, for this model.", unit="duration", example="never"
    )
    context: Auto | Positive | None = field(
        None, "As `models.defaults.context`, for this model.", unit="tokens", example="32768"
    )
    pinned: bool = field(False, "Whether it is evicted only after all others.", example="true")
    priority: Literal["high", "normal", "low"] = field(
        "normal", "Which models are evicted first: low before normal before high, within each "
        "the longest unused.",
        example="high",
    )  # fmt: skip
    max_concurrency: Literal["inherit"] | Positive | None = field(
        None, "As `models.defaults.max_concurrency`, for this model.",
        unit="requests", reload="live-drain", example="2",
    )  # fmt: skip
    sampling: Annotated[Mapping[SamplingName, float], AfterValidator(_sampling)] = field(
        {}, "How it samples where a request does not say: temperature, top_p, top_k, min_p and "
        "repeat_penalty. Its own stored parameters come after these.",
        example="{temperature: 0.7}",
    )  # fmt: skip
    kv_bits: Literal["none", 2, 3, 4, 6, 8] = field(
        "none", "Bits of each number in its cache of keys and values; with a number "
        "its requests share no steps: up to 8 of them take turns, a token each.",
        unit="bits", reload="rolling", example="8",
    )  # fmt: skip
    draft: Name | None = field(
        None, "The model, by its name, that drafts tokens for it (speculative decoding) "
        "while one request alone decodes; answers stay the same. Where it cannot, the model is "
        "served without.",
        reload="rolling", example='"qwen2.5-coder:0.5b"',
    )  # fmt: skip
    draft_tokens: Auto | Annotated[int, Field(ge=1, le=16)] = field(
        "auto", "How many tokens `draft` proposes in a step; auto: as many as pay, by what steps "
        "take and how often the last ones were right, and none where none do.",
        unit="tokens", reload="rolling", example="4",
    )  # fmt: skip
    adapter: Folder | None = field(
        None, "The folder of an adapter (LoRA) that is put on its weights.",
        reload="rolling", example="~/mlx-models/adapters/house-style",
    )  # fmt: skip
    chat_template: Folder | None = field(
        None, "A file with the chat template to use in place of the model's own.",
        reload="rolling", example="~/mlx-models/templates/coder.jinja",
    )  # fmt: skip
    trust_remote_code: bool = field(
        False, "Whether Python code in the model's folder may run. It may do whatever mlxd may. "
        "A model that needs it is unavailable without.",
        reload="rolling", example="true",
    )  # fmt: skip
    prefixes: Prefixes = section("Beginnings of prompts that are worth more than others.")


class Retry(Policy):
    max: int = field(
        2, "Further attempts after a load that failed, unless its worker has said why: then each "
        "would fail like it.",
        unit="attempts", example="0", ge=0, le=10,
    )  # fmt: skip
    backoff: Delay = field(
        "2s", "Before the first further attempt; each later one waits twice as long.",
        unit="duration", example="10s",
    )  # fmt: skip


class Load(Policy):
    max_parallel: int = field(
        1, "Models that are loaded at one time.", unit="models", example="2", ge=1
    )
    retry: Retry = section("A load that failed is tried again.")


class Pull(Policy):
    allow: Names = field(
        ("mlx-community/*",), "Repositories that may be pulled from a hub, where `*` stands for "
        "any text; `[]` pulls none.",
        example='["mlx-community/*", "our-team/*"]',
    )  # fmt: skip
    endpoint: Auto | Url = field(
        "auto", "The hub that models are pulled from, such as a mirror in this network; auto is "
        "HF_ENDPOINT, else the public one. A token is taken from HF_TOKEN in the daemon's "
        "environment.",
        unit="URL", example='"https://hub.example"',
    )  # fmt: skip
    max_parallel: int = field(
        4, "Models that are pulled at one time; one more is refused (503).",
        unit="pulls", example="2", ge=1, le=100,
    )  # fmt: skip


class Uploads(Policy):
    max_bytes: Size = field(
        "200GiB", "Files that clients upload to create models of, all together; beyond that an "
        "upload is refused (507).",
        unit="size", example="20GiB",
    )  # fmt: skip
    max_count: int = field(
        1000, "How many such files there may be; one more is refused (507).",
        unit="files", example="100", ge=1, le=100_000,
    )  # fmt: skip
    keep: Duration = field(
        "1d", "How long an uploaded file is kept that no model was made of, or that one was made "
        "of already: the model has its own.",
        unit="duration", example="1h",
    )  # fmt: skip


CHAINS = ("default", "reasoning", "coding", "fast", "tiny")


def _with_all_chains(chains: Mapping[str, tuple[str, ...]]) -> Mapping[str, tuple[str, ...]]:
    return dict.fromkeys(CHAINS, ()) | dict(chains)


class Models(Policy):
    """Which models there are, what they are called and how long they stay."""

    dirs: Folders = field(
        (
            "~/mlx-models", "~/.cache/huggingface/hub", "~/.lmstudio/models",
            "~/.cache/lm-studio/models",
        ), "Folders that are scanned for models, and only read: each model is one folder in them "
        "(`NAME` or `ORGANISATION/NAME`), or one of a Hugging Face cache. Of one name the first "
        "counts.",
        example="[~/mlx-models, /srv/models]",
    )  # fmt: skip
    defaults: ModelDefaults = section("For every model that does not say otherwise.")
    preload: Names = field(
        (), "Models loaded in the background, in this order, once the daemon serves. An added "
        "name is loaded, a removed one becomes evictable and is never killed. While it is listed "
        "a model does not idle out and is evicted last; what does not fit is skipped with a "
        "warning.",
        example='["qwen2.5-coder:32b"]',
    )  # fmt: skip
    max_loaded: Auto | Positive = field(
        "auto", "Models in memory at one time; auto lets memory decide.",
        unit="models", reload="live-drain", example="2",
    )  # fmt: skip
    max_loaded_bytes: Auto | Size = field(
        "auto", "Weights in memory at one time, of all models together; auto lets memory decide.",
        unit="size", reload="live-drain", example="64GiB",
    )  # fmt: skip
    load: Load = section("How models are loaded.")
    pull: Pull = section("What may be fetched over the network.")
    uploads: Uploads = section("What clients upload to create models of.")
    chains: Annotated[Mapping[Name, Names], AfterValidator(_with_all_chains)] = field(
        {}, "Names that stand for the first available model of a list; an empty list is 404. "
        "default, reasoning, coding, fast and tiny are always there.",
        example='{coding: ["qwen2.5-coder:32b", "qwen2.5-coder:7b"]}',
    )  # fmt: skip
    models: Mapping[Name, Model] = field(
        {},
        "Settings of single models, by name: the folder's, its last part, or the short name "
        "(qwen2.5-coder:32b for Qwen2.5-Coder-32B-Instruct-4bit), which are all models of that "
        "name.",
        example='{"qwen2.5-coder:32b": {ttl: never}}',
    )

    @cached_property
    def written(self) -> WrittenNames:
        """The names in `models`; those with a folder of their own speak of that alone."""
        return WrittenNames(self.models, {name for name, own in self.models.items() if own.path})

    @property
    def folders(self) -> tuple[Path, ...]:
        """`dirs`, with ~ as this user's home."""
        return tuple(map(places.expanded, self.dirs))
