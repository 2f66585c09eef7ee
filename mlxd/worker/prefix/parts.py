"""All that keeps beginnings of prompts for one loaded model, put together."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from mlxd.ipc.messages import Launch
from mlxd.worker.job import Fetched
from mlxd.worker.loading import Loaded
from mlxd.worker.prefix.backing import Backing
from mlxd.worker.prefix.disk import Disk
from mlxd.worker.prefix.folder import Folder
from mlxd.worker.prefix.identity import identity
from mlxd.worker.prefix.keeping import Keeping
from mlxd.worker.prefix.layout import Layout
from mlxd.worker.prefix.report import Cache
from mlxd.worker.prefix.snapshot import can_be_kept, can_be_trimmed
from mlxd.worker.prefix.store import Store


@dataclass(frozen=True, slots=True)
class PrefixParts:
    """Without a store nothing is kept of this model's caches."""

    store: Store | None
    cache: Cache
    backing: Backing | None
    keeping: Keeping


def prefix_parts(
    loaded: Loaded,
    launch: Launch,
    key: str,
    *,
    tell: Callable[[str], None],
    lacks: Callable[[str], None],
    post: Callable[[Fetched], None],
) -> PrefixParts:
    """`key`: `key_of(launch)`, from before the load. `tell` is told what an operator should know,
    `lacks` for as long as it is so; `post` puts into the inbox. It keeps nothing until it is told
    how many bytes it may.
    """
    keeping = Keeping()
    caches = make_prompt_cache(loaded.model) if loaded.batchable else []
    if not can_be_kept(caches):
        return PrefixParts(None, Cache(), None, keeping)
    trimmable = can_be_trimmed(caches)
    store = Store(trimmable=trimmable, keeps=lambda entry: keeping.keeps(entry.ids))
    disk = None
    if launch.prefixes is not None and key and key == key_of(launch):
        folder = Folder(Path(os.fsdecode(launch.prefixes.folder)), key)
        disk = _disk(loaded, folder, launch.prefixes.disk_bytes, tell, lacks, trimmable=trimmable)
    backing = Backing(store, disk, keeping, post)
    cache = Cache(store, disk)
    if launch.budget is not None:
        cache.shrink(launch.budget.prefix_bytes)
    return PrefixParts(store, cache, backing, keeping)


def key_of(launch: Launch, *, dated: bool = True) -> str:
    """What caches are computed by, as a key; empty where nothing is kept on disk. One that is
    another behind the load says that the model's files have changed meanwhile; one that is not
    `dated`, that what is in them is another.
    """
    if launch.prefixes is None:
        return ""
    adapter = Path(launch.adapter) if launch.adapter else None
    try:
        return identity(
            Path(launch.path), adapter,
            digest=launch.prefixes.digest, kv_bits=launch.kv_bits, dated=dated,
        )  # fmt: skip
    except OSError:
        return ""


def _disk(
    loaded: Loaded,
    folder: Folder,
    budget: int | None,
    tell: Callable[[str], None],
    lacks: Callable[[str], None],
    *,
    trimmable: bool,
) -> Disk | None:
    caches = make_prompt_cache(loaded.model)
    loaded.model(mx.array([[0]]), cache=caches)
    if loaded.kv is not None:
        loaded.kv.apply(caches)
    mx.eval([cache.state for cache in caches])
    layout = Layout(caches)
    if not layout.known:
        return None
    disk = Disk(folder, layout, trimmable=trimmable, budget=budget, tell=tell, lacks=lacks)
    disk.start()
    return disk
