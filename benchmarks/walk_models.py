"""The models of a walk: a folder for each name, in a process of its own that has mlx.

python benchmarks/walk_models.py FOLDER
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import mortal
from tests.support.encoder_maker import make_encoder
from tests.support.model_maker import TOOL_TEMPLATE, TOOLS, make_model

PLAIN, HYBRID, DRAFTED, DRAFTER, ADAPTED, QUANTISED, ENCODER = (
    "plain", "hybrid", "drafted", "drafter", "adapted", "quantised", "encoder",
)  # fmt: skip
MOVING = "moving"
"""Its folder comes and goes, and is one of two."""
VARIANTS = ("first", "second")
_PACE = 0.005
_KINDS = (
    (PLAIN, "full", 2), (HYBRID, "hybrid", 2), (DRAFTED, "full", 3), (DRAFTER, "full", 1),
    (ADAPTED, "sliding", 2), (QUANTISED, "full", 2),
)  # fmt: skip


def make(folder: Path) -> None:
    models = folder / "models"
    words = _make_words(folder / "words")
    for seed, (name, family, layers) in enumerate(_KINDS):
        mortal.make(models / name, family, layers, _PACE, seed)
        for file in words.glob("tokenizer*.json"):
            shutil.copy(file, models / name)
    make_encoder(models / ENCODER)
    for seed, variant in enumerate(VARIANTS, start=len(_KINDS)):
        mortal.make(folder / "variants" / variant, "full", 2, _PACE, seed)
    shutil.copytree(folder / "variants" / VARIANTS[0], models / MOVING)
    _make_adapter(folder / "adapter")


def _make_words(folder: Path) -> Path:
    """A tokenizer that knows all bytes, as grammars need it, and the marks of tool calls."""
    plain = mortal.full(1)
    spare = 8  # rows that no token has, as real models do: their tokenizers may add some
    shape = replace(plain, vocab=plain.vocab - spare, template=TOOL_TEMPLATE, markers=TOOLS)
    return make_model(folder, shape)


def _make_adapter(folder: Path) -> None:
    """A LoRA adapter for the queries of the last layer. With a scale of 20 attention is so sharp
    that a token's odds depend on rounding, in the third digit.
    """
    import mlx.core as mx

    hidden = mortal.full(2).hidden
    folder.mkdir()
    lora = {"rank": 4, "scale": 0.5, "dropout": 0.0, "keys": ["self_attn.q_proj"]}
    config = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": lora}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    name = "model.layers.1.self_attn.q_proj"
    weights = {f"{name}.lora_a": mx.ones((hidden, 4)), f"{name}.lora_b": mx.ones((4, hidden))}
    mx.save_safetensors(str(folder / "adapters.safetensors"), weights)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
