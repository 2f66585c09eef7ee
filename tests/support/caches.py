"""Real models of all layouts of caches, and what they leave behind a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm.utils
from mlx_lm.generate import maybe_quantize_kv_cache
from mlx_lm.models.cache import make_prompt_cache

from mlxd.ipc.messages import TOKEN_BYTES, packed
from mlxd.worker.engine import Kind
from tests.support.model_maker import HYBRID, MOE, SLIDING, UNMERGEABLE, Shape

RECURRENT = Shape(
    model_type="mamba2",
    extra={
        "num_heads": 4, "head_dim": 16, "state_size": 16, "conv_kernel": 4, "n_groups": 1,
        "expand": 1, "use_bias": False, "use_conv_bias": True, "layer_norm_epsilon": 1e-5,
        "chunk_size": 64, "time_step_limit": [0.0, 1e9], "residual_in_fp32": False,
        "time_step_rank": 4, "rms_norm": True,
    },
)  # fmt: skip
LISTED = Shape(
    model_type="falcon_h1",
    extra={
        "attention_bias": False, "attention_in_multiplier": 1.0, "attention_out_multiplier": 1.0,
        "embedding_multiplier": 1.0, "key_multiplier": 1.0, "lm_head_multiplier": 1.0,
        "mamba_chunk_size": 64, "mamba_conv_bias": True, "mamba_d_conv": 4, "mamba_d_head": 16,
        "mamba_d_ssm": 64, "mamba_d_state": 16, "mamba_expand": 1, "mamba_n_groups": 1,
        "mamba_n_heads": 4, "mamba_norm_before_gate": False, "mamba_proj_bias": False,
        "mamba_rms_norm": True, "mamba_use_mlp": True, "max_seq_len": 4096, "mlp_bias": False,
        "mlp_expansion_factor": 2, "mlp_multipliers": [1.0, 1.0], "projectors_bias": False,
        "ssm_in_multiplier": 1.0, "ssm_multipliers": [1.0] * 5, "ssm_out_multiplier": 1.0,
        "time_step_floor": 1e-4, "time_step_limit": [0.0, 1e9],
    },
)  # fmt: skip
"""A layer's cache is a list: of a state, and of keys and values."""
LAYOUTS = {
    "full": Shape(spread=3.0),
    "half": Shape(spread=3.0, dtype="bfloat16"),
    "sliding": replace(SLIDING, spread=3.0),
    "hybrid": replace(HYBRID, spread=3.0),
    "experts": replace(MOE, spread=3.0),
    "recurrent": replace(RECURRENT, spread=3.0),
    "listed": replace(LISTED, spread=3.0),
    "chunked": replace(UNMERGEABLE, spread=3.0),
    "quantised": Shape(hidden=256, spread=3.0),
}


@dataclass
class Entry:
    """As the store keeps one."""

    ids: bytes
    caches: list[Any]
    kind: Kind = "turn"
    owner: str = ""
    public: bool = False
    used: float = 0.0
    kept: bool = False
    stored: bool = False

    @property
    def length(self) -> int:
        return len(self.ids) // TOKEN_BYTES


class Reads:
    """One model, without an engine around it."""

    def __init__(self, folder: Path, bits: int = 0) -> None:
        self.model, _ = mlx_lm.utils.load_model(folder)
        self._bits = bits

    def caches(self, tokens: Sequence[int]) -> list[Any]:
        """After these tokens."""
        caches = make_prompt_cache(self.model)
        self.read(tokens, caches)
        return caches

    def read(self, tokens: Sequence[int], caches: list[Any]) -> mx.array:
        """The logits behind them."""
        logits = self.model(mx.array([tokens]), cache=caches)
        if self._bits:
            maybe_quantize_kv_cache(caches, 0, 64, self._bits)
        mx.eval(logits, [layer.state for layer in caches])
        return logits[0, -1]

    def goes_on(self, caches: list[Any], count: int = 8) -> list[int]:
        """Greedy tokens from here; `caches` are written to."""
        tokens = [7]
        for _ in range(count):
            tokens.append(int(mx.argmax(self.read(tokens[-1:], caches))))
        return tokens[1:]

    def entry(self, tokens: Sequence[int], **more: Any) -> Entry:
        return Entry(packed(tokens), self.caches(tokens), **more)


def tokens_of(seed: int, count: int) -> list[int]:
    """Some that are in every vocabulary here."""
    return [(seed * 7919 + n * n * 31 + n * 17) % 500 for n in range(count)]
