"""Whether a model can draft for another: loaded and tried; or why not, in words without paths."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from mlxd.core.footprint import LayerGroup
from mlxd.worker.loading import Loaded, load, vocabulary_of
from mlxd.worker.measure import groups_of
from mlxd.worker.refusal import LoadError
from mlxd.worker.trimming import room


@dataclass(frozen=True, slots=True)
class Drafting:
    """What drafts for a model."""

    model: Any = None
    """None: nothing does."""
    width: int = 0
    """Token ids from here up are none that both models have."""
    groups: tuple[LayerGroup, ...] = ()
    """Of its caches."""
    refused: str = ""
    """Why nothing does, where something was to."""


def drafting_of(folder: Path, loaded: Loaded) -> Drafting:
    """Raises LoadError only for want of memory: any other model drafts, or none does."""
    reason = _unfit(loaded)
    if reason:
        return Drafting(refused=reason)
    try:
        if not _alike(vocabulary_of(folder), loaded.tokenizer.get_vocab()):
            return Drafting(refused="the model that was to draft has other tokens")
        draft = load(folder)
    except LoadError as error:
        if error.out_of_memory:
            raise
        return Drafting(refused=f"the model that was to draft does not load: {error}")
    if draft.encodes or room(make_prompt_cache(draft.model)) == 0:
        del draft
        gc.collect()
        mx.clear_cache()
        return Drafting(refused="the caches of the model that was to draft cannot be trimmed")
    return Drafting(
        model=draft.model,
        width=min(draft.vocabulary, draft.width, loaded.vocabulary),
        groups=groups_of(_begun(draft.model)),
    )


def _unfit(loaded: Loaded) -> str:
    """Why nothing can draft for this model; empty: something can."""
    if loaded.encodes:
        return "it makes no text"
    if not loaded.batchable:
        return "its caches are quantised, or do not batch"
    if room(make_prompt_cache(loaded.model)) == 0:
        return "its caches cannot be trimmed"
    return ""


def _alike(one: dict[str, int], other: dict[str, int]) -> bool:
    """Whether the ids that both have mean the same. Families add tokens at the end."""
    both = min(len(one), len(other))
    return all(other.get(token) == id for token, id in one.items() if id < both)


def _begun(model: Any) -> list[Any]:
    """Its caches, with one token."""
    cache: list[Any] = make_prompt_cache(model)
    mx.eval(model(mx.array([[0]]), cache=cache))
    return cache
