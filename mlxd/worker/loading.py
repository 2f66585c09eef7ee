"""A model folder into a model that runs; or why not, in words without paths."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import mlx_lm.utils
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlxd.worker.refusal import LoadError

CACHE_LIMIT_BYTES = 2**30
"""Of freed buffers that MLX keeps for reuse on a GPU; its own default is most of the memory."""
LONGEST_REASON = 300
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that has run one step."""

    model: Any
    tokenizer: TokenizerWrapper
    vocabulary: int
    """Token ids from here up would be read from beyond its tables."""
    width: int
    """Of a row of logits."""
    batchable: bool


def prepare_mlx() -> None:
    """Before any generator exists.

    mlx-lm would wire all the memory the machine recommends, once for each process; and on a CPU
    MLX would compile kernels with g++ into a folder that any local user can predict.
    """
    sys.modules["mlx_lm.generate"].maybe_set_recommended_wired_limit = lambda: None  # type: ignore[attr-defined]
    if mx.metal.is_available() or mx.cuda.is_available():
        mx.set_cache_limit(CACHE_LIMIT_BYTES)
    else:
        mx.disable_compile()


def load(folder: Path) -> Loaded:
    """Raises LoadError."""
    model, config = _stage("the weights", folder, lambda: mlx_lm.utils.load_model(folder))
    tokenizer = _stage("the tokenizer", folder, lambda: _tokenizer(folder, config))
    width = _stage("a first step", folder, lambda: _first_step(model))
    return Loaded(
        model=model,
        tokenizer=tokenizer,
        vocabulary=min(width, _embedding_rows(model, config)),
        width=width,
        batchable=all(hasattr(cache, "merge") for cache in make_prompt_cache(model)),
    )


def _stage(what: str, folder: Path, work: Callable[[], T]) -> T:
    try:
        return work()
    except Exception as error:
        raise LoadError(f"{what}: {_words(error, folder)}") from error


def _words(error: Exception, folder: Path) -> str:
    """The first line of what was said, without any path of this machine."""
    said = str(error).replace(str(folder), "its folder")
    said = re.sub(r"(?<![\w.])/[^\s'\",;:)]+", "...", said)
    lines = said.strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:LONGEST_REASON]


def _tokenizer(folder: Path, config: dict[str, Any]) -> TokenizerWrapper:
    return mlx_lm.utils.load_tokenizer(
        folder, {"trust_remote_code": False}, eos_token_ids=config.get("eos_token_id")
    )


def _first_step(model: Any) -> int:
    """The width of its logits; and whatever a backend compiles at first use is compiled."""
    logits = model(mx.array([[0]]), cache=make_prompt_cache(model))
    mx.eval(logits)
    width: int = logits.shape[-1]
    return width


def _embedding_rows(model: Any, config: dict[str, Any]) -> int:
    """The table of tokens is the longest of the embeddings (others hold positions)."""
    rows = [
        weight.shape[0]
        for name, weight in tree_flatten(model.parameters())
        if name.endswith("weight") and weight.ndim == 2 and _EMBEDDING.search(name)
    ]
    text = config.get("text_config") or {}
    stated = config.get("vocab_size") or text.get("vocab_size")
    known = ([max(rows)] if rows else []) + ([stated] if stated else [])
    return min(known, default=sys.maxsize)


_EMBEDDING = re.compile(r"(embed\w*|wte|word_embeddings|tok_embeddings)\.weight$")
