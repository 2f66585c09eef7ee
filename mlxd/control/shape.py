"""A model's footprint from what its files say, before it has ever been loaded.

Weights are the bytes of its files; caches follow from config.json, layer by layer, as mlx-lm makes
them. A loaded model tells both exactly: this is for the first time.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from mlxd.core.dimensions import (
    FLOAT32,
    GROUPED_LINEAR,
    Dimensions,
    computed,
    number,
    selective_width,
    state_bytes,
)
from mlxd.core.footprint import Footprint, LayerGroup
from mlxd.core.models import ModelCard

_KV_GROUP = 64
"""Numbers that share a scale and a bias in a quantised cache."""
_FULL, _WINDOW, _RECURRENT = "full", "window", "recurrent"
_KINDS = {
    "full_attention": (_FULL,), "attention": (_FULL,), "global": (_FULL,), "*": (_FULL,),
    "sliding_attention": (_WINDOW,), "sliding_window": (_WINDOW,), "local": (_WINDOW,),
    "chunked_attention": (_WINDOW,),
    "linear_attention": (_RECURRENT,), "mamba": (_RECURRENT,), "mamba2": (_RECURRENT,),
    "recurrent": (_RECURRENT,), "conv": (_RECURRENT,), "M": (_RECURRENT,),
    "conv_mixer": (_RECURRENT,), "hybrid": (_RECURRENT, _FULL),
    "-": (), "mlp": (), "E": (), "moe": (),
}  # fmt: skip
"""The words of configs for what a layer keeps; by any other it keeps all tokens."""
_PATTERNED = frozenset(("cohere2", "gemma3", "gemma3_text"))
"""Families whose windows come by a pattern that may go without saying."""
_ALIKE = {
    "mamba": (_RECURRENT,), "mamba2": (_RECURRENT,), "falcon_mamba": (_RECURRENT,),
    "rwkv7": (_RECURRENT,), "falcon_h1": (_RECURRENT, _FULL),
    "longcat_flash": (_FULL, _FULL), "longcat_flash_ngram": (_FULL, _FULL),
}  # fmt: skip
"""Families of which each layer keeps the same."""
_UNPACKED = frozenset(("deepseek_v2", "minicpm3"))
"""Families with latent attention that keep the keys and values made of it."""
_MOST_LAYERS = 4096
"""Of a config that says more, no more are counted: many times what any model has."""
_MOE_STACKS = 2
"""Layers whose experts are held twice while they are put together."""


def footprint_of(card: ModelCard, *, fused: bool = sys.platform == "darwin") -> Footprint:
    """`fused`: attention keeps no matrix of scores, as on a Mac's GPU."""
    config = card.config
    dimensions = Dimensions.of(config, item_bytes(card))
    groups = groups_of(config, dimensions, card.spec.kv_bits)
    inner = list(_layers(config, _window(config)))[:-1]
    scored = any(kind in (_FULL, _WINDOW) for layer in inner for kind in layer)
    footprint = computed(dimensions, card.size_bytes, groups, fused=fused, scored=scored)
    if card.draft is None:
        return footprint
    return replace(
        footprint,
        weights_bytes=footprint.weights_bytes + card.draft.size_bytes,
        draft=_draft_groups(card.draft),
    )


def _draft_groups(draft: ModelCard) -> tuple[LayerGroup, ...]:
    return groups_of(draft.config, Dimensions.of(draft.config, item_bytes(draft)), 0)


def loading_bytes(card: ModelCard, *, laid_out: bool = sys.platform == "linux") -> int:
    """The most that is held while it is loaded, by the files alone. `laid_out`: float32 is turned,
    one matrix after the other (worker/matrices.py), which a GPU would not need.
    """
    quantization = card.config.get("quantization_config")
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    if method == "fp8" and "quantization" not in card.config:
        return 2 * card.size_bytes  # it is unpacked into 16 bits
    matrix = _largest_matrix(card) if laid_out else 0
    return card.size_bytes + max(_stacked_bytes(card), min(matrix, card.size_bytes))


def _stacked_bytes(card: ModelCard) -> int:
    """Of experts that are put together."""
    experts, layers = number(card.config, *EXPERTS), number(card.config, *LAYERS)
    if experts <= 1 or not layers or not card.experts_apart:
        return 0
    return _MOE_STACKS * card.size_bytes // max(_MOE_STACKS, layers)


def _largest_matrix(card: ModelCard) -> int:
    """Bytes; 0 where weights are no float32."""
    if item_bytes(card) != FLOAT32 or "bit" in card.quantization:
        return 0
    dimensions = Dimensions.of(card.config, FLOAT32)
    expert = dimensions.inner // max(1, dimensions.experts)
    stacked = expert * max(1, number(card.config, *EXPERTS))
    return FLOAT32 * dimensions.hidden * max(number(card.config, "vocab_size"), stacked)


def item_bytes(card: ModelCard) -> int:
    """Of a number while it is computed; quantised weights are computed with in halves."""
    stated = card.config.get("dtype") or card.config.get("torch_dtype")
    known = (card.quantization, stated) if "bit" not in card.quantization else (stated,)
    return FLOAT32 if any(word in ("f32", "float32") for word in known) else 2


EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_transformer_layers")
"""Where configs say how many there are."""


def groups_of(
    config: Mapping[str, Any], dimensions: Dimensions, kv_bits: int
) -> tuple[LayerGroup, ...]:
    """The caches that mlx-lm makes by this config."""
    window = _window(config)
    kinds = Counter(kind for layer in _layers(config, window) for kind in layer)
    full = _token_bytes(config, dimensions, kv_bits)
    kept = {
        _FULL: LayerGroup(kinds[_FULL], full),
        _WINDOW: LayerGroup(kinds[_WINDOW], _token_bytes(config, dimensions, 0), window),
        _RECURRENT: LayerGroup(kinds[_RECURRENT], 0, 0, _constant(config, dimensions.item_bytes)),
    }
    return tuple(group for group in kept.values() if group.layers)


def _window(config: Mapping[str, Any]) -> int:
    return number(
        config, "sliding_window", "attention_chunk_size", "attention_window_size",
        "sliding_window_size",
    )  # fmt: skip


def _layers(config: Mapping[str, Any], window: int) -> Iterator[tuple[str, ...]]:
    """What each layer keeps."""
    count = min(number(config, *LAYERS) - number(config, "num_kv_reuse_layers"), _MOST_LAYERS)
    stated = config.get("model_type")
    family = stated if isinstance(stated, str) else ""
    named = (
        config.get("layer_types")
        or config.get("layers_block_type")
        or config.get("hybrid_override_pattern")
    )
    if isinstance(named, list | str) and named:
        first = named[:_MOST_LAYERS]
        kinds = [_KINDS.get(kind, (_FULL,)) for kind in first if isinstance(kind, str)]
        shared = number(config, "num_kv_shared_layers")
        yield from kinds[: len(kinds) - shared] if count else kinds
        return
    for layer in range(count):
        yield _unnamed(config, layer, family, window)


def _unnamed(config: Mapping[str, Any], layer: int, family: str, window: int) -> tuple[str, ...]:
    """Of a layer in a config that says nothing of single layers."""
    if family in _ALIKE:
        return _ALIKE[family]
    if (attends := _attends(config, layer, family)) is not None:
        return (_FULL,) if attends else (_RECURRENT,)
    every = number(config, "sliding_window_pattern")
    if window and (every or family in _PATTERNED):
        return (_FULL,) if (layer + 1) % (every or 6) == 0 else (_WINDOW,)
    if family == "gpt_oss" and window:
        return (_WINDOW,) if layer % 2 == 0 else (_FULL,)
    return (_FULL,)


def _attends(config: Mapping[str, Any], layer: int, family: str) -> bool | None:
    """Where all others have states; None: none has."""
    if every := number(config, "attn_layer_period"):
        return layer % every == number(config, "attn_layer_offset")
    if family in GROUPED_LINEAR:  # what is left over behind the last group attends, too
        group, count = number(config, "layer_group_size") or 1, number(config, *LAYERS)
        return (layer + 1) % group == 0 or layer >= count // group * group
    interval = number(config, "full_attention_interval")
    if interval or number(config, "linear_num_value_heads"):
        return (layer + 1) % (interval or 4) == 0
    return None


def _token_bytes(config: Mapping[str, Any], dimensions: Dimensions, kv_bits: int) -> int:
    latent = number(config, "kv_lora_rank")
    if latent and str(config.get("model_type")) not in _UNPACKED:
        return (latent + number(config, "qk_rope_head_dim")) * dimensions.item_bytes
    keys = number(config, "qk_nope_head_dim") + number(config, "qk_rope_head_dim")
    values = number(config, "v_head_dim")
    numbers = dimensions.kv_heads * ((keys or dimensions.head) + (values or dimensions.head))
    if kv_bits:
        return numbers * kv_bits // 8 + 2 * (numbers // _KV_GROUP) * dimensions.item_bytes
    return numbers * dimensions.item_bytes


def _constant(config: Mapping[str, Any], item_bytes: int) -> int:
    """Of one sequence in one recurrent layer: its state, and the end of a convolution's input."""
    kernel = number(
        config, "linear_conv_kernel_dim", "conv_kernel", "mamba_d_conv", "conv_L_cache",
        "short_conv_kernel_size",
    )  # fmt: skip
    keys = number(config, "linear_num_key_heads") * number(config, "linear_key_head_dim")
    values = number(config, "linear_num_value_heads") * number(config, "linear_value_head_dim")
    width = 2 * keys + values
    if str(config.get("model_type")) in GROUPED_LINEAR:
        width = 3 * number(config, "num_attention_heads") * number(config, "head_dim")
    if not width:
        inner = number(config, "mamba_d_ssm") or selective_width(config)
        inner = inner or number(config, "intermediate_size", "hidden_size")
        shared = number(config, "n_groups", "mamba_n_groups") * number(
            config, "ssm_state_size", "state_size", "mamba_d_state"
        )
        width = inner + 2 * shared
    return state_bytes(config) + max(0, kernel - 1) * width * item_bytes
