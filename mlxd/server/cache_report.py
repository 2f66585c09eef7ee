"""What the daemon says of kept beginnings of prompts: on the admin socket, and as metrics. Numbers,
never a token.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

from mlxd.control.reuses import Reuses
from mlxd.control.worker import Worker
from mlxd.ipc import messages as ipc
from mlxd.server.parts import Parts

Json = dict[str, Any]

_ANSWER_SECONDS = 5.0
"""A worker answers between two steps."""


async def stats(parts: Parts, workers: Sequence[Worker]) -> list[Json]:
    """Of each of these."""
    told = await asyncio.gather(*(worker.cache_stats(_ANSWER_SECONDS) for worker in workers))
    return [_entry(parts.replays.reuses, *each) for each in zip(workers, told, strict=True)]


async def clear(parts: Parts, workers: Sequence[Worker], *, disk: bool) -> list[Json]:
    """What there is of each of these, once nothing is kept that was."""
    told = await asyncio.gather(
        *(worker.clear_cache(_ANSWER_SECONDS, disk=disk) for worker in workers)
    )
    return [_entry(parts.replays.reuses, *each) for each in zip(workers, told, strict=True)]


async def disk(parts: Parts) -> Json:
    """Of all models, those included that are not in memory."""
    entries, size = await parts.supervisor.prefixes.on_disk()
    return {"entries": entries, "bytes": size}


def _entry(reuses: Reuses, worker: Worker, told: ipc.CacheStats | None) -> Json:
    counts, budget = reuses.of(worker.name), worker.budget
    return {
        "name": worker.name,
        "answered": told is not None,
        "entries": told.entries if told is not None else None,
        "tokens": told.tokens if told is not None else None,
        "bytes": told.bytes if told is not None else worker.memory.prefix,
        "budget_bytes": budget.prefix_bytes if budget is not None else 0,
        "oldest_use_seconds": round(told.oldest_seconds, 1) if told is not None else None,
        "disk_entries": told.disk_entries if told is not None else None,
        "disk_bytes": told.disk_bytes if told is not None else None,
        "lookups": {"whole": counts.whole, "part": counts.part, "none": counts.none},
        "reused_tokens": counts.reused,
        "computed_tokens": counts.computed,
    }


def measure(parts: Parts) -> None:
    """The metrics that are asked for at each scrape."""
    reuses = parts.replays.reuses
    parts.metrics.watch_counts(
        "mlxd_prefix_lookups",
        "Prompts, by how much of them was kept from earlier ones: whole, part, none.",
        ("model", "result"),
        lambda: list(_lookups(reuses)),
    )
    parts.metrics.watch_counts(
        "mlxd_prefix_tokens",
        "Tokens of those prompts: reused, computed.",
        ("model", "kind"),
        lambda: list(_tokens(reuses)),
    )


def _lookups(reuses: Reuses) -> Iterator[tuple[tuple[str, ...], float]]:
    for model, counts in reuses.each():
        yield (model, "whole"), counts.whole
        yield (model, "part"), counts.part
        yield (model, "none"), counts.none


def _tokens(reuses: Reuses) -> Iterator[tuple[tuple[str, ...], float]]:
    for model, counts in reuses.each():
        yield (model, "reused"), counts.reused
        yield (model, "computed"), counts.computed
