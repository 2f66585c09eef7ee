"""Makes small real model folders: random safetensors, a byte-level BPE tokenizer, a chat template.

A random model says nothing that makes sense, but it is loaded, batched and sampled like any
other, and with `spread` above 1 its greedy text does not repeat itself.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlxd.worker import stand_in

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = (
    "The quick brown fox jumps over the lazy dog. A server answers requests and streams tokens.",
    "Съешь ещё этих мягких французских булок, да выпей же чаю. Сервер отвечает на запросы.",
    "天地玄黃 宇宙洪荒 日月盈昃 辰宿列張 模型在内存中 请求排队等待",
    "😀 🚀 🎉 👍🏽 👨‍👩‍👧‍👦 émigré naïve coöperate façade",
)


@dataclass(frozen=True)
class Shape:
    """The size of a model; the default has about 0.1 M parameters."""

    hidden: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    intermediate: int = 128
    vocab: int = 512
    context: int = 4096
    spread: float = 1.0
    dtype: str = "float32"
    model_type: str = "llama"
    extra: dict[str, Any] = field(default_factory=dict)
    """More of config.json."""
    markers: tuple[str, ...] = ()
    """More added tokens, such as `<think>`; they come after all others."""
    template: str = CHAT_TEMPLATE


THINKING = ("<think>", "</think>")
TOOLS = ("<tool_call>", "</tool_call>")
TOOL_TEMPLATE = (
    "{% if tools %}{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for tool_call in message.tool_calls or [] %}<tool_call>{% set tool_call = "
    "tool_call.function %}{{ tool_call.name }} {{ tool_call.arguments | tojson }}</tool_call>"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking %}<think>\n{% endif %}{% endif %}"
)
"""With tools, and with a think block that is open where thinking is enabled."""

SLIDING = Shape(
    extra={"sliding_window": 32, "layer_types": ["sliding_attention", "full_attention"]}
)
MOE = Shape(
    model_type="qwen3_moe",
    extra={
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": 64,
        "norm_topk_prob": True,
    },
)
HYBRID = Shape(
    model_type="qwen3_5",
    extra={
        "full_attention_interval": 2,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    },
)
"""Linear attention and full attention in turn."""
UNMERGEABLE = Shape(
    model_type="llama4",
    layers=4,
    extra={
        "attention_bias": False,
        "attention_chunk_size": 64,
        "interleave_moe_layer_step": 2,
        "intermediate_size_mlp": 128,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "rope_scaling": None,
        "use_qk_norm": True,
    },
)
"""Its caches have no `merge`: one request at a time."""


def make_model(folder: Path, shape: Shape | None = None, *, seed: int = 0) -> Path:
    """Write a complete model folder and return it."""
    shape = shape or Shape()
    return write_model(folder, _config(shape), shape, seed=seed)


def write_model(folder: Path, config: dict[str, Any], shape: Shape, *, seed: int = 0) -> Path:
    """The same, of a config of one's own."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    _write_tokenizer(folder, shape)
    _write_weights(folder, config, spread=shape.spread, seed=seed)
    return folder


def make_hollow(folder: Path, size: int) -> None:
    """Give a model so many bytes of weights, all in one tensor that takes no room on the disk; its
    layers have empty ones.

    It is whole as far as headers tell, and is not meant to be loaded.
    """
    tensor = {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}
    layers = json.loads((folder / "config.json").read_text())["num_hidden_layers"]
    nothing = {"dtype": "F32", "shape": [0], "data_offsets": [size, size]}
    tensors = {f"model.layers.{n}.mlp.up_proj.weight": nothing for n in range(layers)}
    header = json.dumps({"model.embed_tokens.weight": tensor} | tensors).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)


def _config(shape: Shape) -> dict[str, Any]:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": shape.model_type,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.hidden // shape.heads,
        "intermediate_size": shape.intermediate,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "eos_token_id": 0,
        "bos_token_id": 1,
        "torch_dtype": shape.dtype,
        **shape.extra,
    }
    if shape.model_type == "llama4":
        return {"model_type": "llama4", "text_config": config, "eos_token_id": 0}
    return config


def _write_tokenizer(folder: Path, shape: Shape) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=shape.vocab - len(shape.markers),
        special_tokens=["<|im_end|>", "<|im_start|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    tokenizer.add_tokens(list(shape.markers))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": "<|im_end|>",
                "model_max_length": 1_000_000,
                "clean_up_tokenization_spaces": False,
                "chat_template": shape.template,
            }
        )
    )


def _write_weights(folder: Path, config: dict[str, Any], *, spread: float, seed: int) -> None:
    """Random weights for whatever architecture mlx-lm builds from `config`."""
    stand_in.install()  # as in a worker: all of transformers takes a second
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.utils import _get_classes

    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(config))
    dtype = getattr(mx, config.get("text_config", config)["torch_dtype"])
    key = mx.random.key(seed)
    weights: dict[str, mx.array] = {}
    for name, value in tree_flatten(model.parameters()):
        key, draw = mx.random.split(key)
        if value.ndim < 2:
            weights[name] = value.astype(dtype)
            continue
        scale = spread * value.shape[-1] ** -0.5
        weights[name] = (mx.random.normal(value.shape, key=draw) * scale).astype(dtype)
        mx.eval(weights[name])
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
