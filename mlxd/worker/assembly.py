"""Puts a worker's parts together around a loaded model. Importing this imports all of mlx-lm."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import mlx.core as mx
from mlx_lm.generate import generation_stream
from mlx_lm.models.cache import make_prompt_cache

from mlxd.core.footprint import STEP_TOKENS, Footprint, LayerGroup
from mlxd.core.heap import Heap
from mlxd.core.traces import print_trace
from mlxd.ipc.messages import Budget, Deaf, Lacks, Launch, Loading, Noted, Ready
from mlxd.worker.allocator import Allocator, working_set
from mlxd.worker.apart import Apart
from mlxd.worker.budget import Ledger
from mlxd.worker.checks import Checks
from mlxd.worker.detokenize import Detokenizers
from mlxd.worker.drafter import Drafter
from mlxd.worker.drafting import Drafting, drafting_of
from mlxd.worker.encoder import encoder_footprint
from mlxd.worker.engine import COMPLETION_BATCH, Engine
from mlxd.worker.grammar import Grammars
from mlxd.worker.groups import Groups
from mlxd.worker.intake import Intake
from mlxd.worker.link import Link
from mlxd.worker.loading import Loaded, load, prepare_mlx
from mlxd.worker.logprobs import Scorer
from mlxd.worker.loop import Loop
from mlxd.worker.machine import has_gpu
from mlxd.worker.making import Maker
from mlxd.worker.markup import Markup
from mlxd.worker.measure import footprint_of
from mlxd.worker.mlx_engine import MlxEngine
from mlxd.worker.pooling import recipe_of
from mlxd.worker.prefix.boundaries import Outlines
from mlxd.worker.prefix.parts import PrefixParts, key_of, prefix_parts
from mlxd.worker.prefix.store import Store
from mlxd.worker.prompt import Prompter
from mlxd.worker.reading import EncoderReader, Reader
from mlxd.worker.readings import Reads
from mlxd.worker.serial import OPEN_SEQUENCES, SerialEngine
from mlxd.worker.speculation import Speculation
from mlxd.worker.tuning import Tuned
from mlxd.worker.turns import Turns
from mlxd.worker.warming import Warming


def assemble(launch: Launch, link: Link, intake: Intake, began: float) -> tuple[Loop, Ready]:
    """`began` is when the load did, on the monotonic clock. Raises LoadError."""
    link.send(Loading("weights"))
    prepare_mlx()
    allocator = Allocator(Heap.found())
    file = Path(os.fsdecode(launch.turns)) if launch.turns else None
    turns = Turns(file, _finish, intake.progress.stand)
    if launch.budget is not None:
        allocator.apply(launch.budget)
        turns.exclusive = launch.budget.exclusive
    key = key_of(launch)
    loaded = _loaded(launch, link)
    drafting = _drafting(launch, loaded)
    link.send(Loading("footprint"))
    footprint = _footprint(loaded, launch.footprint, measured=launch.measured)
    footprint = replace(footprint, draft=drafting.groups, sharing=loaded.sharing)
    peak = mx.get_peak_memory()
    kept = prefix_parts(
        loaded,
        launch,
        key,
        tell=lambda words: link.send(Noted(words)),
        lacks=lambda words: link.send(Lacks(words)),
        post=lambda fetched: intake.inbox.put([fetched]),
    )
    allocator.kept = lambda: kept.cache.nbytes
    mx.clear_cache()
    markup, detokenizers = Markup(loaded.tokenizer), Detokenizers(loaded.tokenizer)
    intake.progress.measure = allocator.measure
    intake.preparation.checks = _checks(loaded, launch, link, markup, kept)
    tuned = Tuned()
    speculating = partial(_speculation, drafting, launch.draft_tokens, tuned)
    ledger = _ledger(loaded, footprint, launch.budget, allocator.kept)
    make_engine = partial(
        _engine, loaded, footprint, ledger,
        prefixes=kept.store, tuned=tuned, speculating=speculating,
    )  # fmt: skip
    ends = tuple(sorted(loaded.tokenizer.eos_token_ids))
    loop = Loop(
        make_engine,
        link,
        intake.inbox,
        intake.progress,
        maker=Maker(detokenizers, markup, loaded.vocabulary, ends),
        reader=_reader(loaded, Path(launch.path), detokenizers),
        ledger=ledger,
        allocator=allocator,
        turns=turns,
        tuned=tuned,
        prefixes=kept.store,
        cache=kept.cache,
        backing=kept.backing,
        warming=Warming(intake.preparation.add, launch.context),
    )
    ready = Ready(
        batchable=loaded.batchable,
        vocabulary=loaded.vocabulary,
        context=launch.context,
        load_seconds=time.monotonic() - began,
        active_bytes=mx.get_active_memory(),
        thinking=markup.thinking,
        tools=markup.tools,
        footprint=footprint,
        peak_bytes=peak,
        working_set_bytes=working_set(),
        answers=not loaded.encodes,
        drafts=drafting.model is not None,
        draft_refused=drafting.refused,
        key=key_of(launch, dated=False) if key == key_of(launch) else "",
    )
    return loop, ready


def _checks(
    loaded: Loaded, launch: Launch, link: Link, markup: Markup, kept: PrefixParts
) -> Checks:
    grammars = Grammars(
        loaded.tokenizer,
        loaded.width,
        markup.json_markers,
        deaf=lambda seconds: link.send(Deaf(seconds)),
    )
    if launch.held:
        grammars.prepare()
    return Checks(
        prompter=Prompter(loaded.tokenizer),
        grammars=grammars,
        vocabulary=loaded.vocabulary,
        context=launch.context,
        answers=not loaded.encodes,
        outlines=None if kept.store is None else Outlines(loaded.tokenizer),
        keeps=lambda: kept.store is not None and kept.store.keeps,
        keeping=kept.keeping,
    )


def _loaded(launch: Launch, link: Link) -> Loaded:
    return load(
        Path(launch.path),
        adapter=Path(launch.adapter) if launch.adapter else None,
        template=Path(launch.chat_template) if launch.chat_template else None,
        trust=launch.trust_remote_code,
        kv_bits=launch.kv_bits,
        known=launch.footprint.sharing if launch.footprint and launch.measured else None,
        tell=link.send,
    )


def _footprint(
    loaded: Loaded, known: Footprint | None = None, *, measured: bool = False
) -> Footprint:
    """All that is held now are weights; caches that have seen a token tell the rest.

    `known` is what the daemon said, `measured` whether it knows it from an earlier load.
    """
    weights = mx.get_active_memory()
    if loaded.encodes:
        return encoder_footprint(loaded.model, weights)
    cache = make_prompt_cache(loaded.model)
    mx.eval(loaded.model(mx.array([[0]]), cache=cache))
    try:
        return footprint_of(
            loaded.model,
            cache,
            weights,
            fused=has_gpu(),
            kv_bits=loaded.kv.bits if loaded.kv is not None else 0,
            known=known,
            measured=measured,
        )
    except Exception as error:  # noqa: BLE001 - models are others' code, and need not let themselves be read
        print_trace(error)
        if loaded.kv is not None:
            loaded.kv.apply(cache)
        groups = (LayerGroup(1, sum(layer.nbytes for layer in cache) // STEP_TOKENS),)
        return replace(known or Footprint(0, ()), weights_bytes=weights, groups=groups)


def _reader(loaded: Loaded, folder: Path, detokenizers: Detokenizers) -> Reads:
    recipe = partial(recipe_of, folder, causal=not loaded.encodes)
    if loaded.encodes:
        return EncoderReader(loaded.model, recipe)
    scorer = partial(Scorer, detokenizers)
    return Reader(loaded.model, loaded.width, loaded.kv, recipe, scorer)


def _drafting(launch: Launch, loaded: Loaded) -> Drafting:
    if not launch.draft:
        return Drafting()
    drafting = drafting_of(Path(launch.draft), loaded)
    if drafting.refused:
        sys.stderr.write(f"no model drafts for it: {drafting.refused}\n")
    return drafting


def _ledger(
    loaded: Loaded, footprint: Footprint, budget: Budget | None, kept: Callable[[], int]
) -> Ledger:
    if loaded.batchable:
        return Ledger(footprint, COMPLETION_BATCH, budget, kept=kept)
    return Ledger(Apart.of(footprint), OPEN_SEQUENCES, budget, kept=kept)


def _engine(
    loaded: Loaded,
    footprint: Footprint,
    ledger: Ledger,
    *,
    prefixes: Store | None,
    tuned: Tuned,
    speculating: Callable[[], Speculation | None],
) -> Engine:
    """What is kept may be what broke the engine before."""
    if prefixes is not None:
        prefixes.clear()
    stop_tokens = loaded.tokenizer.eos_token_ids
    if not loaded.batchable:
        return SerialEngine(loaded.model, stop_tokens, loaded.kv, tuned=tuned)
    speculation = speculating()
    return MlxEngine(
        loaded.model,
        stop_tokens,
        padded=loaded.sharing == "any",
        batches=Groups(footprint, lambda: ledger.rows_room, speculation),
        prefixes=prefixes,
        tuned=tuned,
        speculation=speculation,
    )


def _speculation(drafting: Drafting, depth: int, tuned: Tuned) -> Speculation | None:
    """`depth`: as `Launch.draft_tokens`."""
    if drafting.model is None:
        return None
    drafter = Drafter(drafting.model, drafting.width)
    return Speculation(drafter, depth=depth or None, tuned=tuned)


def _finish() -> None:
    """A step leaves the next one computing; wait for it."""
    mx.synchronize(generation_stream)
