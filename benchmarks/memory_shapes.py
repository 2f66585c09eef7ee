"""Models of random sizes, a few of each kind, and what is done to them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Draw = random.Random


@dataclass(frozen=True)
class Scenario:
    """Prompts that run already, prompts that join them then, and tokens that all of them decode."""

    name: str
    running: tuple[int, ...]
    joining: tuple[int, ...]
    decoded: int = 4


@dataclass(frozen=True)
class Shape:
    """A model to build with random weights."""

    kind: str
    config: dict[str, Any]
    dtype: str
    bits: int = 0
    """Of its weights; 0: they are of `dtype`."""
    scenarios: tuple[Scenario, ...] = field(default=())

    @property
    def name(self) -> str:
        c = self.config.get("text_config", self.config)
        heads = f"{c['num_attention_heads']}/{c['num_key_value_heads']}x{c['head_dim']}"
        weights = f"{self.bits}bit" if self.bits else self.dtype
        return (
            f"{c['model_type']} {c['num_hidden_layers']}x{c['hidden_size']} {heads} "
            f"i{c['intermediate_size']} v{c['vocab_size']} {weights}"
        )


def shapes(kind: str, seed: int, count: int, *, short: bool = False) -> list[Shape]:
    """`count` of one kind; the same for the same seed."""
    draw = random.Random(f"{seed}/{kind}")
    return [_drawn(kind, n, draw, short=short) for n in range(count)]


def observations(draw: Draw, count: int) -> tuple[Scenario, ...]:
    """Small ones of all sorts, from which an estimate can learn."""
    found = []
    for n in range(count):
        running = tuple(draw.randint(40, 300) for _ in range(draw.randint(0, 2)))
        joining = tuple(draw.randint(60, 500) for _ in range(draw.randint(1, 3)))
        found.append(Scenario(f"observation {n + 1}", running, joining, 2))
    return tuple(found)


def _drawn(kind: str, n: int, draw: Draw, *, short: bool) -> Shape:
    config, dtype, bits = KINDS[kind](draw, n)
    slow = 4 if bits else 2 if dtype != "float32" else 1
    return Shape(kind, config, dtype, bits, _scenarios(draw, 4 * slow if short else slow))


def _scenarios(draw: Draw, part: int) -> tuple[Scenario, ...]:
    def tokens(low: int, high: int) -> int:
        return draw.randint(low // part, high // part)

    return (
        Scenario("one long prompt", (), (tokens(600, 2300),)),
        Scenario(
            "prompts together", (), tuple(tokens(150, 600) for _ in range(draw.randint(2, 4)))
        ),
        Scenario("a long decode", (), (tokens(400, 700),) * draw.randint(2, 3), 260 // part),
        Scenario("a short one joins", (tokens(500, 900),) * draw.randint(1, 2), (tokens(40, 200),)),
        Scenario("a long one joins", (tokens(200, 400),), (tokens(500, 1000),)),
    )


def _base(draw: Draw) -> dict[str, Any]:
    """Wide caches and few weights, so that weights are not most of it."""
    kv_heads = draw.choice([1, 2, 4])
    return {
        "hidden_size": draw.choice([96, 128, 192, 256]),
        "num_hidden_layers": draw.choice([4, 6]),
        "intermediate_size": draw.choice([128, 256, 384, 512]),
        "num_attention_heads": kv_heads * draw.choice([1, 2, 4] if kv_heads < 4 else [1, 2]),
        "num_key_value_heads": kv_heads,
        "head_dim": draw.choice([32, 64, 96]),
        "rms_norm_eps": 1e-5,
        "vocab_size": draw.choice([300, 1000, 4000]),
        "tie_word_embeddings": True,
        "max_position_embeddings": 32768,
        "rope_theta": 1e6,
    }


def _dtype(draw: Draw) -> str:
    return draw.choice(["float32", "float16", "bfloat16"])


def _llama(draw: Draw, n: int) -> tuple[dict[str, Any], str, int]:
    config = {**_base(draw), "model_type": draw.choice(["llama", "qwen2", "qwen3"])}
    if config["model_type"] == "qwen2":  # which knows no other size of a head
        config["hidden_size"] = config["num_attention_heads"] * config["head_dim"]
    elif n % 4 == 3:
        config["hidden_size"] = config["intermediate_size"] = 128
    return config, _dtype(draw), draw.choice([4, 8]) if n % 4 == 3 else 0


def _sliding(draw: Draw, n: int) -> tuple[dict[str, Any], str, int]:
    config = {**_base(draw), "sliding_window": draw.choice([64, 128, 300, 512])}
    if n % 3 == 2:
        return _gpt_oss(draw, config), "float32", 0
    if n % 3:
        pattern = draw.choice([2, 3])
        config |= {
            "model_type": "gemma3_text",
            "sliding_window_pattern": pattern,
            "query_pre_attn_scalar": config["head_dim"],
        }
    else:
        layers = config["num_hidden_layers"]
        types = ["sliding_attention", "full_attention"] * (layers // 2)
        config |= {"model_type": "llama", "layer_types": types}
    return config, _dtype(draw), 0


def _gpt_oss(draw: Draw, config: dict[str, Any]) -> dict[str, Any]:
    """Windows, experts and attention sinks."""
    return {
        **config,
        "model_type": "gpt_oss",
        "num_local_experts": 4,
        "num_experts_per_tok": draw.choice([1, 2]),
        "layer_types": ["sliding_attention", "full_attention"] * (config["num_hidden_layers"] // 2),
        "rope_scaling": None,
    }


def _hybrid(draw: Draw, n: int) -> tuple[dict[str, Any], str, int]:
    if n % 3 == 2:
        return _falcon(draw), "float32", 0
    config = _linear(draw)
    if n % 3:
        moe = {"moe_intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2}
        more = {
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "shared_expert_intermediate_size": 64,
        }
        return {**config, **moe, **more, "model_type": "qwen3_next"}, "float32", 0
    return {"model_type": "qwen3_5", "text_config": config}, _dtype(draw), 0


def _falcon(draw: Draw) -> dict[str, Any]:
    """Attention and a state space in each layer."""
    heads, head = draw.choice([2, 4]), draw.choice([16, 32])
    return {
        **_base(draw),
        "model_type": "falcon_h1",
        "mamba_d_conv": 4,
        "mamba_d_head": head,
        "mamba_d_ssm": heads * head,
        "mamba_d_state": draw.choice([16, 32]),
        "mamba_n_groups": 1,
        "mamba_n_heads": heads,
        "mamba_expand": 1,
        "mamba_rms_norm": False,
        "mamba_norm_before_gate": False,
        "mamba_conv_bias": True,
        "mamba_proj_bias": False,
        "projectors_bias": False,
        "mlp_bias": False,
        "attention_bias": False,
    }


def _linear(draw: Draw) -> dict[str, Any]:
    keys = draw.choice([1, 2])
    return {
        **_base(draw),
        "num_hidden_layers": draw.choice([4, 8]),
        "full_attention_interval": draw.choice([2, 4]),
        "linear_num_key_heads": keys,
        "linear_num_value_heads": keys * draw.choice([1, 2]),
        "linear_key_head_dim": draw.choice([16, 32, 64]),
        "linear_value_head_dim": draw.choice([16, 32, 64]),
        "linear_conv_kernel_dim": 4,
        "partial_rotary_factor": 0.25,
        "model_type": "qwen3_5",
    }


def _moe(draw: Draw, n: int) -> tuple[dict[str, Any], str, int]:
    config = {**_base(draw), "num_experts_per_tok": draw.choice([1, 2, 3])}
    if n % 2:
        config |= {"model_type": "mixtral", "num_local_experts": 4}
        config["hidden_size"] = config["num_attention_heads"] * config["head_dim"]
    else:
        config |= {
            "model_type": "qwen3_moe",
            "num_experts": 8,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "moe_intermediate_size": draw.choice([64, 96, 192]),
            "norm_topk_prob": True,
        }
    return config, "float32", 0  # MLX multiplies gathered experts in float32 only, on a CPU


KINDS: dict[str, Callable[[Draw, int], tuple[dict[str, Any], str, int]]] = {
    "llama": _llama,
    "sliding": _sliding,
    "hybrid": _hybrid,
    "moe": _moe,
}
