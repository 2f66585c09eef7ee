"""A model's sizes as its config states them, and about what a step computes with by them.

The numbers of arrays were fitted to recorded steps of models of random sizes, on a CPU, where
norms, rotations and attention are many operations; a GPU's are fewer, so that this is too much
there rather than too little. A loaded model tells it exactly (mlxd/worker/moments.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlxd.core.footprint import Footprint, LayerGroup, Moment

FLOAT32 = 4
_LARGEST = 2**40
_HIDDEN_HEADS = frozenset((
    "cohere", "deepseek", "gpt_neox", "granite", "granitemoe", "granitemoehybrid", "internlm2",
    "internlm3", "jamba", "lfm2", "lfm2_moe", "minicpm", "mixtral", "olmo", "phi", "phi3", "phimoe",
    "plamo2", "qwen", "qwen2", "qwen2_moe", "stablelm", "starcoder2",
))  # fmt: skip
"""Families whose heads share the hidden width, whatever their config says of a head's."""

_PLAIN_HEADS = frozenset(("afm7", "openelm", "phixtral"))
"""Families that call heads of attention just heads, as others do those of states."""
_WIDTHS = ("hidden_size", "d_model", "n_embd", "dim", "hidden_dim", "model_dim")
GROUPED_LINEAR = frozenset(("bailing_hybrid", "bailing_moe_linear", "bailing_moe_v3"))
"""Families of which the last layer of each group has full attention, and the others a state."""
_HELD_STATES = 12
"""Arrays of Jamba's scan, which works out the states behind all tokens before it goes through
them one by one.
"""
_SINKS = frozenset(("gpt_oss",))
"""Families whose scores are put beside attention sinks, and taken apart again."""


@dataclass(frozen=True, slots=True)
class Work:
    """How many arrays as wide as each of these are alive at one time, for each token."""

    hidden: float = 0.0
    queries: float = 0.0
    keys: float = 0.0
    inner: float = 0.0
    """The width of an MLP, times the experts that a token is sent to."""
    routed: float = 0.0
    """The hidden width, once for each of these experts; once where there are none."""
    linear: float = 0.0
    """The values of linear attention."""


_WORK = {
    FLOAT32: (Work(3.2, 1.7, 2.6, 3.2, 5.6, 12.0), Work(6.1, 6.1, 2.4, 3.0, 0.0, 12.0)),
    2: (Work(6.2, 4.6, 1.7, 2.8, 11.0, 19.0), Work(0.0, 10.8, 0.0, 0.0, 0.0, 19.0)),
}
"""By the bytes of a number; half floats are widened for norms and rotations."""


@dataclass(frozen=True, slots=True)
class Dimensions:
    """What decides how much a step computes with."""

    item_bytes: int
    """Of a number while it is computed."""
    hidden: int
    inner: int
    heads: int
    head: int
    kv_heads: int
    experts: int = 0
    """That a token is sent to; 0: there are none."""
    linear: int = 0
    state_bytes: int = 0
    """Of one sequence in one recurrent layer."""
    score_copies: int = 1
    scan_heads: int = 0
    """Of a state-space layer, which works through a chunk in blocks."""
    held_states: int = 0
    """Arrays of the states behind all tokens of a chunk that are alive at one time, on any machine;
    0: a GPU has none.
    """

    @classmethod
    def of(cls, config: Mapping[str, Any], item_bytes: int) -> Dimensions:
        """Of a config.json, with what a multimodal one says of its text model on top."""
        heads = _heads(config)
        hidden = number(config, *_WIDTHS)
        experts = number(
            config, "num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k_experts"
        )
        inner = number(config, "intermediate_size", "ffn_hidden_size", "n_inner") or 4 * hidden
        if experts:
            inner = experts * (number(config, "moe_intermediate_size") or inner)
            inner += number(config, "shared_expert_intermediate_size")
        return cls(
            item_bytes=item_bytes,
            hidden=hidden,
            inner=inner,
            heads=heads,
            head=_head(config, hidden, heads),
            kv_heads=_kv_heads(config, heads),
            experts=experts,
            linear=_linear(config),
            state_bytes=state_bytes(config),
            scan_heads=_scan_heads(config),
            held_states=_HELD_STATES if config.get("model_type") == "jamba" else 0,
            score_copies=3 if str(config.get("model_type")) in _SINKS else 1,
        )

    def token_bytes(self, work: Work) -> int:
        numbers = (
            work.hidden * self.hidden
            + work.queries * self.heads * self.head
            + work.keys * self.kv_heads * self.head
            + work.inner * self.inner
            + work.routed * self.hidden * max(1, self.experts)
            + work.linear * self.linear
        )
        return int(self.item_bytes * numbers)


def _head(config: Mapping[str, Any], hidden: int, heads: int) -> int:
    stated = 0 if str(config.get("model_type")) in _HIDDEN_HEADS else number(config, "head_dim")
    return stated or hidden // heads


def _heads(config: Mapping[str, Any]) -> int:
    named = number(config, "num_attention_heads", "n_head", "n_heads")
    if named or str(config.get("model_type")) not in _PLAIN_HEADS:
        return named or 1
    return number(config, "num_heads") or _most(config, "num_query_heads") or 1


def _kv_heads(config: Mapping[str, Any], heads: int) -> int:
    family = str(config.get("model_type"))
    if family == "gpt_bigcode":
        return 1 if config.get("multi_query", True) else heads
    if family in _PLAIN_HEADS:
        return number(config, "num_kv_heads") or _most(config, "num_kv_heads") or heads
    if shared := number(config, "n_shared_head"):
        return -(-heads // shared)
    inner = config.get("attn_config")
    named = number(config, "num_key_value_heads", "n_head_kv", "n_kv_heads", "num_attention_groups")
    return named or (number(inner, "kv_n_heads") if isinstance(inner, Mapping) else 0) or heads


def _most(config: Mapping[str, Any], name: str) -> int:
    """Of a number that each layer has its own of; 0: it is no list of counts."""
    values = config.get(name)
    counts = values if isinstance(values, list) else []
    return max((v for v in counts if type(v) is int and 0 < v < _LARGEST), default=0)


def number(config: Mapping[str, Any], *names: str) -> int:
    """The first of these that is a count; 0 where none is."""
    values = (config.get(name) for name in names)
    return next((v for v in values if type(v) is int and 0 < v < _LARGEST), 0)


def _linear(config: Mapping[str, Any]) -> int:
    values = number(config, "linear_num_value_heads") * number(config, "linear_value_head_dim")
    heads = _scan_heads(config) if str(config.get("model_type")) not in GROUPED_LINEAR else 0
    return values or heads * number(config, "mamba_head_dim", "mamba_d_head", "head_dim")


def _scan_heads(config: Mapping[str, Any]) -> int:
    if config.get("model_type") == "mamba2":
        return number(config, "num_heads")
    if config.get("model_type") == "bailing_hybrid":
        return number(config, "num_attention_heads")
    return number(config, "mamba_num_heads", "mamba_n_heads")


def state_bytes(config: Mapping[str, Any]) -> int:
    """Of a recurrent layer's state, which is kept in float32."""
    keys = number(config, "linear_key_head_dim") or number(
        config, "ssm_state_size", "state_size", "mamba_d_state"
    )
    if config.get("model_type") == "rwkv7":
        return FLOAT32 * number(config, "hidden_size") * number(config, "head_dim")
    if str(config.get("model_type")) in GROUPED_LINEAR:
        head = number(config, "head_dim")
        return FLOAT32 * number(config, "num_attention_heads") * head * head
    return FLOAT32 * (_linear(config) or selective_width(config)) * keys


def selective_width(config: Mapping[str, Any]) -> int:
    """Of a state-space layer without heads (Mamba's first kind); 0: it has none."""
    if config.get("model_type") == "jamba":
        return number(config, "mamba_expand") * number(config, "hidden_size")
    known = config.get("model_type") in ("mamba", "falcon_mamba")
    return number(config, "intermediate_size") if known else 0


def computed(
    dimensions: Dimensions,
    weights_bytes: int,
    groups: Sequence[LayerGroup],
    *,
    fused: bool,
    scored: bool = True,
) -> Footprint:
    """A footprint with about the moments that a recorded step would show.

    `scored`: whether any layer but the last attends. While a prompt is read, nobody asks what
    comes of the last layer, so it is not worked out beyond its keys and values.
    """
    d = dimensions
    scores = (1 if fused else d.score_copies * d.heads * d.item_bytes + 2) * scored
    read = d if scored else replace(d, heads=0)
    layer = max((group.token_bytes for group in groups), default=0)
    works = _WORK[FLOAT32 if d.item_bytes == FLOAT32 else 2]
    row = _STATES * d.state_bytes
    block = SCAN_BLOCK if d.scan_heads else 0
    row += int(_SCANS * FLOAT32 * d.scan_heads * SCAN_BLOCK**2)
    if any(group.token_bytes and not group.window for group in groups):
        seen = Moment(row=row, block=block, pair=scores, key=layer // 2)
    else:
        seen = Moment(row=row, block=block, window_pair=scores, window_key=layer // 2)
    grown = Moment(row=_STATES * d.state_bytes, token=d.token_bytes(works[0]), key=layer)
    copied = (replace(grown, key=2 * layer),)
    tokens = [read.token_bytes(work) for work in works]
    if d.held_states or not (fused or d.scan_heads):
        tokens.append(max(1, d.held_states) * d.state_bytes + int(_BESIDE_STATES * max(tokens)))
    return Footprint(
        weights_bytes,
        tuple(groups),
        prefill=tuple(replace(seen, token=token) for token in tokens),
        start=copied,
        decode=(grown,),
        join=copied,
    )


SCAN_BLOCK = 256
"""Tokens that a state-space layer works through together, each against each (mlx-lm's ssm_attn)."""
_SCANS = 6.5
"""Matrices of a block against itself, for each head."""
_BESIDE_STATES = 0.4
"""Of what a step computes with, while linear attention holds a state for each token."""
_STATES = 1
"""Copies of a recurrent state that are alive while it takes in tokens one by one."""
