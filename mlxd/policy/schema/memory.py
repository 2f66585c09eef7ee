"""memory.yaml: what happens as memory fills up."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from mlxd.policy.schema.base import Auto, Policy, Positive, Reload, field, section
from mlxd.policy.units import Delay, Duration, Ratio, Size

Action = Literal[
    "warn", "drop_mlx_cache", "block_loads", "evict_lru", "shed_low_priority", "evict_all_idle",
    "stop_admission", "cancel_lowest_priority",
]  # fmt: skip
Actions = Annotated[tuple[Action, ...], Field(strict=False)]
Budget = Literal["auto", "off"] | Size


class Monitors(Policy):
    system_ram: bool = field(
        True, "Whether the machine's memory in use counts, and that of the memory limit (cgroup) "
        "that the daemon runs under.",
        example="false",
    )  # fmt: skip
    gpu_working_set: Auto | bool = field(
        "auto", "Whether what the engines hold counts, as a share of what the GPU recommends as "
        "its working set; auto counts it where there is such a number.",
        example="false",
    )  # fmt: skip
    pressure_level: bool = field(
        True, "Whether the system's own word on memory pressure counts. macOS: its levels warning "
        "and critical are at least these marks. Linux: warning when for 30 s processes have "
        "waited for memory 30 % of the time (PSI, some avg10), critical from 60 %.",
        example="false",
    )  # fmt: skip


def _actions(default: tuple[Action, ...], example: str, meaning: str = "") -> Any:
    words = meaning or "What is done, as under `memory.watermarks.warning.actions`."
    return field(default, words, example=example)


class Mark(Policy):
    """Each mark has an `enter` and `actions` of its own; a share is measured on every monitor."""

    enter: Ratio
    clear: Auto | Ratio = field(
        "auto", "Share under which the mark is left again; auto is 5 points below `enter`, and "
        "never less than half of it.",
        unit="ratio", example="60%",
    )  # fmt: skip
    held: Delay = field(
        "0s", "How long the share must stay there before the mark counts.",
        unit="duration", example="30s", alias="for",
    )  # fmt: skip
    actions: Actions


class WarningMark(Mark):
    enter: Ratio = field(
        "85%", "Share of memory in use from which /health warns.",
        unit="ratio", example="80%",
    )  # fmt: skip
    actions: Actions = _actions(
        ("warn", "drop_mlx_cache"), "[warn]",
        "What is done, in this order: warn reports it; drop_mlx_cache frees the engines' unused "
        "buffers and has them keep half as much of earlier prompts, from the critical mark on "
        "nothing; block_loads loads nothing more (an answer whose worker has died waits for the "
        "end of that); evict_lru has nothing of earlier prompts kept, and drops idle models, the "
        "longest unused first, until the mark is left; shed_low_priority refuses new generations "
        "(503) of "
        "the classes whose `clients.priorities.<class>.shed_at` is reached; evict_all_idle drops "
        "every unprotected model; stop_admission refuses all generations; cancel_lowest_priority "
        "ends the newest generation of the lowest class that runs, one in each check_interval. "
        "What lasts is undone when the mark is left.",
    )  # fmt: skip


class CriticalMark(Mark):
    enter: Ratio = field(
        "95%", "Share of memory in use above which idle models are dropped and none is loaded.",
        unit="ratio", example="90%",
    )  # fmt: skip
    actions: Actions = _actions(
        ("block_loads", "evict_lru", "shed_low_priority"), "[block_loads, evict_lru]"
    )


class EmergencyMark(Mark):
    enter: Ratio = field(
        "98%", "Share of memory in use above which every unprotected model is dropped and the "
        "newest work cancelled.",
        unit="ratio", example="97%",
    )  # fmt: skip
    actions: Actions = _actions(
        ("evict_all_idle", "stop_admission", "cancel_lowest_priority"), "[evict_all_idle]"
    )


class Watermarks(Policy):
    warning: WarningMark = section("The first mark.")
    critical: CriticalMark = section("The second mark.")
    emergency: EmergencyMark = section("The last mark.")


class Eviction(Policy):
    strategy: Literal["lru"] = field(
        "lru", "Which idle model goes first: the one unused for longest. One in use, loading or "
        "used within `protect_recent` never goes, a pinned one last.",
        example="lru",
    )  # fmt: skip
    keep: int = field(
        1, "Models that stay however full memory is; only the emergency mark ignores it.",
        unit="models", example="0", ge=0,
    )  # fmt: skip
    protect_recent: Delay = field(
        "30s", "A model used this recently is not evicted; a load that needs its room waits. With "
        "0s two models that do not fit together alternate at once, a load each time.",
        unit="duration", example="0s",
    )  # fmt: skip
    min_residency: Delay = field(
        "30s", "How long a model stays at least once it is loaded, against thrashing; the "
        "emergency mark ignores it.",
        unit="duration", example="2m",
    )  # fmt: skip
    verify_reclaim: Duration = field(
        "5s", "How long to wait for the bytes of an evicted model to be free again before the "
        "next load is judged, on macOS; elsewhere they are free when its process is gone. So long, "
        "too, for what a worker was told to give back of earlier prompts.",
        unit="duration", example="10s",
    )  # fmt: skip


class Reserve(Policy):
    system: Auto | Size = field(
        "auto", "Memory that no load may take: it is the rest of the machine's; auto is 4GiB, and "
        "a tenth of a machine, or of a memory limit, that has less than 40GiB.",
        unit="size", example="16GiB",
    )  # fmt: skip
    per_request: Auto | Size = field(
        "auto", "Memory kept with a model's weights for its first generation; auto is what "
        "`expected_output` and as many prompt tokens take.",
        unit="size", example="2GiB",
    )  # fmt: skip
    expected_output: Positive = field(
        1024, "Tokens of an answer for which memory is kept when a generation starts; beyond them "
        "it grows in steps, and one that cannot grow ends with finish `length`.",
        unit="tokens", example="256",
    )  # fmt: skip
    when_full: Literal["wait", "refuse"] = field(
        "wait", "What a generation or load that does not fit now does: it waits for room, within "
        "`timeouts.model_load` for a load and `timeouts.generation` for a generation, or is "
        "refused at once (503).",
        example="refuse",
    )  # fmt: skip


def _limit(what: str, example: str, reload: Reload = "live") -> Any:
    return field(
        "auto", f"{what}; auto follows the model and the machine.",
        unit="size", reload=reload, example=example,
    )  # fmt: skip


class WorkerLimits(Policy):
    mlx_memory_limit: Auto | Size = _limit(
        "Memory that a worker's engine takes before it waits for running work", "48GiB"
    )
    mlx_cache_limit: Auto | Size = _limit(
        "Freed buffers that a worker's engine keeps for reuse, until it has been idle for 5 s (or "
        "now and then, on a CPU, for less)",
        "2GiB",
    )
    wired_limit: Auto | Size = _limit("Memory that a worker may wire down for the GPU", "40GiB")
    rss_hard: Auto | Size = field(
        "auto", "Resident memory of a worker's process beyond which it is ended; auto is twice "
        "what its engine may hold and 2GiB.",
        unit="size", example="64GiB",
    )  # fmt: skip


class PrefixCache(Policy):
    memory: Budget = field(
        "auto", "Memory of each worker for the beginnings of earlier prompts, as far as nobody "
        "needs it for anything else; auto follows the watermarks (all workers share a quarter of "
        "what is free below the warning mark, each at most four times what its weights take, from "
        "64MiB to 16GiB), off keeps none.",
        unit="size", example="8GiB",
    )  # fmt: skip
    disk: Budget = field(
        "auto", "Disk space in the state folder, of all models together, for the beginnings that "
        "leave memory or are to be there after a restart; auto is a tenth of what is free, and at "
        "most 32GiB; off writes none and removes what is there. They hold what the prompts say.",
        unit="size", example="off",
    )  # fmt: skip


class Memory(Policy):
    """What happens as memory fills up."""

    check_interval: Duration = field(
        "10s",
        "Between two readings of memory; it is also read before each load.",
        unit="duration",
        example="2s",
    )
    monitors: Monitors = section("What is measured; the fullest of them decides.")
    watermarks: Watermarks = section("Shares of memory in use, strictly rising.")
    eviction: Eviction = section("Which models leave memory.")
    reserve: Reserve = section("What must stay free for a load to be allowed.")
    worker_limits: WorkerLimits = section("What one worker may take.")
    gpu_exclusive: Auto | bool = field(
        "auto", "Whether only one worker steps at a time; auto says so where several processes on "
        "one GPU are known to hurt each other (Metal), and lets CPUs and CUDA share.",
        example="true",
    )  # fmt: skip
    prefix_cache: PrefixCache = section("Prompts whose beginning was seen before start there.")
