"""Encoders: models that make vectors of texts and nothing else. BERT, and what is built like it.

Parameters have the names that Hugging Face's BERT gives them; `sanitize` renames those of others.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn

from mlxd.core.footprint import Footprint, Moment

QUERIES = 512
"""Tokens that look at all others in one operation: for so many memory is predicted."""
_ACTIVATIONS: Mapping[str, Callable[[mx.array], mx.array]] = {
    "gelu": nn.gelu,
    "gelu_new": nn.gelu_approx,
    "gelu_pytorch_tanh": nn.gelu_approx,
    "relu": nn.relu,
    "silu": nn.silu,
    "swiglu": nn.silu,
}
_OTHER_KEYS = {
    "hidden_size": ("dim", "n_embd"),
    "num_hidden_layers": ("n_layers", "n_layer"),
    "num_attention_heads": ("n_heads", "n_head"),
    "intermediate_size": ("hidden_dim", "n_inner"),
    "max_position_embeddings": ("n_positions",),
    "layer_norm_eps": ("layer_norm_epsilon",),
    "hidden_act": ("activation", "activation_function"),
    "rotary_base": ("rotary_emb_base",),
}
"""What configs of other families call a field."""
_DEFAULTS: Mapping[str, dict[str, Any]] = {
    "distilbert": {"layer_norm_eps": 1e-12, "type_vocab_size": 0},
    "mpnet": {"layer_norm_eps": 1e-5, "type_vocab_size": 0, "pad_token_id": 1},
    "nomic_bert": {"rotary_base": 1000.0},
    "roberta": {"pad_token_id": 1},
    "xlm-roberta": {"pad_token_id": 1},
    "camembert": {"pad_token_id": 1},
}
"""What goes without saying in a family's configs."""
_OFFSET = frozenset(("roberta", "xlm-roberta", "camembert", "mpnet"))
"""Families whose first position is the one behind the padding token's id."""
_RENAMED = tuple(
    (re.compile(old), new)
    for old, new in (
        (r"^(bert|roberta|mpnet|distilbert|nomic_bert)\.", ""),
        (r"\.(gamma)$", ".weight"),
        (r"\.(beta)$", ".bias"),
        (r"^transformer\.layer\.", "encoder.layer."),
        (r"^encoder\.layers\.", "encoder.layer."),
        (r"\.attention\.(attn\.)?(q|q_lin)\.", ".attention.self.query."),
        (r"\.attention\.(attn\.)?(k|k_lin)\.", ".attention.self.key."),
        (r"\.attention\.(attn\.)?(v|v_lin)\.", ".attention.self.value."),
        (r"\.(attention\.(attn\.o|out_lin)|attn\.out_proj)\.", ".attention.output.dense."),
        (r"\.(attention\.LayerNorm|sa_layer_norm|norm1)\.", ".attention.output.LayerNorm."),
        (r"\.(ffn\.lin1|mlp\.fc11)\.", ".intermediate.dense."),
        (r"\.mlp\.fc12\.", ".intermediate.gate."),
        (r"\.(ffn\.lin2|mlp\.fc2)\.", ".output.dense."),
        (r"\.(output_layer_norm|norm2)\.", ".output.LayerNorm."),
        (r"^emb_ln\.", "embeddings.LayerNorm."),
    )
)
_FARTHEST = 128
"""Tokens from which on MPNet tells distances apart no more."""
_IGNORED = re.compile(r"^(?!embeddings\.|encoder\.)|position_ids$|token_type_ids$")
"""Heads, and tables that only count."""


@dataclass(frozen=True)
class EncoderArgs:
    """What a config.json says of it."""

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_act: str = "gelu"
    pad_token_id: int = 0
    rotary_base: float = 0.0
    """0: positions have vectors of their own."""
    relative_attention_num_buckets: int = 0

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> EncoderArgs:
        """Raises ValueError for what is not offered."""
        if config.get("position_embedding_type") not in (None, "absolute"):
            raise ValueError("its kind of positions is not offered")
        known = _DEFAULTS.get(config["model_type"], {}) | {
            field.name: config[name]
            for field in fields(cls)
            for name in (*_OTHER_KEYS.get(field.name, ()), field.name)
            if config.get(name) is not None
        }
        missing = [f.name for f in fields(cls) if f.name not in known and f.default is MISSING]
        if missing:
            raise ValueError(f"its config does not say {', '.join(missing)}")
        args = cls(**known)
        if args.hidden_act not in _ACTIVATIONS:
            raise ValueError(f"its activation is not offered: {args.hidden_act}")
        return args

    @property
    def first_position(self) -> int:
        return self.pad_token_id + 1 if self.model_type in _OFFSET else 0

    @property
    def rotates(self) -> bool:
        return self.model_type == "nomic_bert"


class _Module(nn.Module):  # type: ignore[misc]
    """MLX's, which has no types."""


class _Embeddings(_Module):
    def __init__(self, args: EncoderArgs) -> None:
        super().__init__()
        self._first = args.first_position
        self.word_embeddings = nn.Embedding(args.vocab_size, args.hidden_size)
        if not args.rotates:
            self.position_embeddings = nn.Embedding(args.max_position_embeddings, args.hidden_size)
        if args.type_vocab_size:
            self.token_type_embeddings = nn.Embedding(args.type_vocab_size, args.hidden_size)
        self.LayerNorm = nn.LayerNorm(args.hidden_size, eps=args.layer_norm_eps)

    def __call__(self, tokens: mx.array) -> mx.array:
        x: mx.array = self.word_embeddings(tokens)
        if "position_embeddings" in self:
            x = x + self.position_embeddings(mx.arange(tokens.shape[1]) + self._first)
        if "token_type_embeddings" in self:
            x = x + self.token_type_embeddings(mx.zeros_like(tokens))
        normed: mx.array = self.LayerNorm(x)
        return normed


class _Looking(_Module):
    """Each token at all of them."""

    def __init__(self, args: EncoderArgs) -> None:
        super().__init__()
        self._heads = args.num_attention_heads
        width, bias = args.hidden_size, not args.rotates
        self.query = nn.Linear(width, width, bias=bias)
        self.key = nn.Linear(width, width, bias=bias)
        self.value = nn.Linear(width, width, bias=bias)
        self._rope = None
        if args.rotates:
            self._rope = nn.RoPE(width // self._heads, base=args.rotary_base)

    def __call__(self, x: mx.array, bias: mx.array | None) -> mx.array:
        rows, length, width = x.shape
        q, k, v = (
            part(x).reshape(rows, length, self._heads, -1).swapaxes(1, 2)
            for part in (self.query, self.key, self.value)
        )
        if self._rope is not None:
            q, k = self._rope(q), self._rope(k)
        scale = q.shape[-1] ** -0.5
        seen = []
        for at in range(0, length, QUERIES):
            mask = None if bias is None else bias[:, :, at : at + QUERIES]
            queries = q[:, :, at : at + QUERIES]
            seen.append(mx.fast.scaled_dot_product_attention(queries, k, v, scale=scale, mask=mask))
            if length > QUERIES:  # one after the other, or all would be held at one time
                mx.eval(seen[-1])
        return mx.concatenate(seen, axis=2).swapaxes(1, 2).reshape(rows, length, width)


class _Output(_Module):
    """Back to the width, and on top of what went in."""

    def __init__(self, width: int, args: EncoderArgs) -> None:
        super().__init__()
        self.dense = nn.Linear(width, args.hidden_size, bias=not args.rotates)
        self.LayerNorm = nn.LayerNorm(args.hidden_size, eps=args.layer_norm_eps)

    def __call__(self, x: mx.array, before: mx.array) -> mx.array:
        after: mx.array = self.LayerNorm(self.dense(x) + before)
        return after


class _Attention(_Module):
    def __init__(self, args: EncoderArgs) -> None:
        super().__init__()
        self.self = _Looking(args)
        self.output = _Output(args.hidden_size, args)

    def __call__(self, x: mx.array, bias: mx.array | None) -> mx.array:
        after: mx.array = self.output(self.self(x, bias), x)
        return after


class _Intermediate(_Module):
    def __init__(self, args: EncoderArgs) -> None:
        super().__init__()
        self._activation = _ACTIVATIONS[args.hidden_act]
        width, inner = args.hidden_size, args.intermediate_size
        self.dense = nn.Linear(width, inner, bias=not args.rotates)
        if args.rotates:
            self.gate = nn.Linear(width, inner, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        inner: mx.array = self.dense(x)
        if "gate" in self:
            return inner * self._activation(self.gate(x))
        return self._activation(inner)


class _Layer(_Module):
    def __init__(self, args: EncoderArgs) -> None:
        super().__init__()
        self.attention = _Attention(args)
        self.intermediate = _Intermediate(args)
        self.output = _Output(args.intermediate_size, args)

    def __call__(self, x: mx.array, bias: mx.array | None) -> mx.array:
        x = self.attention(x, bias)
        after: mx.array = self.output(self.intermediate(x), x)
        return after


class _Layers(_Module):
    def __init__(self, args: EncoderArgs) -> None:
        super().__init__()
        self.layer = [_Layer(args) for _ in range(args.num_hidden_layers)]
        buckets = args.relative_attention_num_buckets
        if buckets:
            self.relative_attention_bias = nn.Embedding(buckets, args.num_attention_heads)

    def bias(self, length: int) -> mx.array | None:
        """Of each token towards each other, by how far apart they are: (1, heads, from, to)."""
        if "relative_attention_bias" not in self:
            return None
        table = self.relative_attention_bias
        apart = np.arange(length)[None, :] - np.arange(length)[:, None]
        found: mx.array = table(mx.array(_bucket(apart, table.weight.shape[0])))
        return found.transpose(2, 0, 1)[None]


class Encoder(_Module):
    """Tokens of shape (1, tokens) to states of shape (1, tokens, numbers)."""

    def __init__(self, args: EncoderArgs) -> None:
        super().__init__()
        self.args = args
        self.embeddings = _Embeddings(args)
        self.encoder = _Layers(args)

    def __call__(self, tokens: mx.array) -> mx.array:
        *_, states = self.states(tokens)
        return states

    def states(self, tokens: mx.array) -> Iterator[mx.array]:
        """Behind each layer."""
        x = self.embeddings(tokens)
        bias = self.encoder.bias(tokens.shape[1])
        for layer in self.encoder.layer:
            x = layer(x, bias)
            yield x

    @property
    def token_bytes(self) -> int:
        """About what a layer computes with for each token, its scores left aside; its activation
        is computed step by step where MLX compiles nothing, as on a CPU.
        """
        args = self.args
        return self._item_bytes * (8 * args.hidden_size + 4 * args.intermediate_size)

    @property
    def pair_bytes(self) -> int:
        """And for each of QUERIES tokens against each of all."""
        return 2 * self._item_bytes * self.args.num_attention_heads

    @property
    def _item_bytes(self) -> int:
        return int(self.embeddings.LayerNorm.weight.itemsize)

    def sanitize(self, weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """Under our names, without heads."""
        found: dict[str, mx.array] = {}
        for original, array in weights.items():
            name = original
            for old, new in _RENAMED:
                name = old.sub(new, name)
            if ".attn.Wqkv." in name:
                parts = zip(("query", "key", "value"), mx.split(array, 3), strict=True)
                for part, piece in parts:
                    found[name.replace(".attn.Wqkv.", f".attention.self.{part}.")] = piece
            elif not _IGNORED.search(name):
                found[name] = array
        return found


def encoder_footprint(model: Encoder, weights_bytes: int) -> Footprint:
    """It keeps no cache; a step is a whole input in one layer."""
    work = Moment(key=model.token_bytes, pair=model.pair_bytes)
    return Footprint(weights_bytes, (), first=(work,), prefill=(work,))


def _bucket(apart: Any, buckets: int) -> Any:
    """Distances to numbers of buckets: near ones by themselves, far ones by their logarithm."""
    half = buckets // 2
    near = half // 2
    distance = np.maximum(np.abs(apart), 1)
    far = near + (
        np.log((distance / near).astype(np.float32)) / math.log(_FARTHEST / near) * (half - near)
    ).astype(int)
    one_side = np.where(np.abs(apart) < near, np.abs(apart), np.minimum(far, half - 1))
    return one_side + np.where(apart > 0, half, 0)
