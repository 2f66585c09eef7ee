"""Export: the trained weights and their configuration as a folder that mlx_lm loads."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from model import Guide
from safetensors.torch import load_file, save_file
from tokenizer import EOS, save_tokenizer
from tokenizers import Tokenizer

HERE = Path(__file__).parent


def export(model: Guide, tokenizer: Tokenizer, out: Path) -> None:
    """Write every file of the model folder but its card."""
    out.mkdir(parents=True, exist_ok=True)
    eos = tokenizer.token_to_id(EOS)
    state = model.state_dict()
    weights = {f"model.{name}": value.to(torch.bfloat16) for name, value in state.items()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)
    _write_json(out / "config.json", _config(model, eos))
    _write_json(
        out / "generation_config.json",
        {"do_sample": False, "temperature": 0.0, "eos_token_id": eos, "pad_token_id": eos},
    )
    template = (HERE / "chat_template.jinja").read_text(encoding="utf-8")
    save_tokenizer(tokenizer, out, model.shape.context, template)


def restore(model: Guide, folders: list[Path]) -> None:
    """Put the weights of an exported folder back into the model, or the mean of several."""
    stored = [load_file(folder / "model.safetensors") for folder in folders]
    means = {name: torch.stack([one[name].float() for one in stored]).mean(0) for name in stored[0]}
    model.load_state_dict({name.removeprefix("model."): mean for name, mean in means.items()})


def _config(model: Guide, eos: int) -> dict[str, object]:
    shape = model.shape
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": shape.context,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "eos_token_id": eos,
        "pad_token_id": eos,
    }


def _write_json(path: Path, document: dict[str, object]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
