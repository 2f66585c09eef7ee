"""Puts a worker's parts together around a loaded model. Importing this imports all of mlx-lm."""

from __future__ import annotations

import time
from pathlib import Path

import mlx.core as mx

from mlxd.core.footprint import Footprint
from mlxd.ipc.messages import Memory, Ready
from mlxd.worker.checks import Checks
from mlxd.worker.detokenize import Detokenizers
from mlxd.worker.engine import Engine
from mlxd.worker.grammar import Grammars
from mlxd.worker.intake import Intake
from mlxd.worker.link import Link
from mlxd.worker.loading import Loaded, load, prepare_mlx
from mlxd.worker.loop import Loop
from mlxd.worker.markup import Markup
from mlxd.worker.mlx_engine import MlxEngine
from mlxd.worker.prompt import Prompter
from mlxd.worker.serial import SerialEngine


def assemble(
    folder: Path, context: int, link: Link, intake: Intake, began: float
) -> tuple[Loop, Ready]:
    """`began` is when the process started, on the monotonic clock. Raises LoadError."""
    prepare_mlx()
    loaded = load(folder)
    markup = Markup(loaded.tokenizer)
    intake.progress.measure = _memory
    intake.preparation.checks = Checks(
        prompter=Prompter(loaded.tokenizer),
        grammars=Grammars(loaded.tokenizer, loaded.width),
        vocabulary=loaded.vocabulary,
        context=context,
    )
    loop = Loop(
        _engine(loaded),
        link,
        intake.inbox,
        intake.progress,
        detokenizers=Detokenizers(loaded.tokenizer),
        markup=markup,
        vocabulary=loaded.vocabulary,
    )
    ready = Ready(
        batchable=loaded.batchable,
        vocabulary=loaded.vocabulary,
        context=context,
        load_seconds=time.monotonic() - began,
        active_bytes=mx.get_active_memory(),
        thinking=markup.thinking,
        tools=markup.tools,
        footprint=Footprint(mx.get_active_memory(), ()),
    )
    return loop, ready


def _memory() -> Memory:
    return Memory(mx.get_active_memory(), mx.get_cache_memory(), mx.get_peak_memory())


def _engine(loaded: Loaded) -> Engine:
    make = MlxEngine if loaded.batchable else SerialEngine
    return make(loaded.model, loaded.tokenizer.eos_token_ids)
