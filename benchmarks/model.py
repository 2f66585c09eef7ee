"""The model that everything here serves: random weights, whole-character tokens, no way to end.

Weights are those of the test models. The tokenizer is made for measuring: every token is whole
ASCII text, so a server that sends each token at once sends one record per token. The rows of the
two special tokens are zero, so neither is ever the likeliest: each answer runs to its limit.
"""

from __future__ import annotations

import argparse
import json
import random
import string
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.model_maker import CHAT_TEMPLATE, Shape, make_model

SHAPES = {
    "tiny": Shape(spread=1.5),
    "tiny-long": Shape(context=65536, spread=1.5),
    "slow": Shape(hidden=256, layers=4, heads=4, kv_heads=4, intermediate=512, spread=1.5),
    "billion": Shape(
        hidden=2048, layers=16, heads=32, kv_heads=8, intermediate=8192, dtype="bfloat16"
    ),
    "seven-billion": Shape(
        hidden=4096, layers=32, heads=32, kv_heads=8, intermediate=14336, dtype="bfloat16"
    ),
}


def stepping(layers: int) -> Shape:
    """Dense and deep: MLX on CPU takes some ten milliseconds for each layer of a step of four."""
    return Shape(
        hidden=384, layers=layers, heads=6, kv_heads=2, intermediate=1536, context=65536, spread=1.5
    )


def bank(megabytes: int) -> Shape:
    """Weights dominate: a token passes through one of many experts, so that a step is short."""
    experts = max(2, round(megabytes * 1e6 / _EXPERT_BYTES))
    return Shape(
        hidden=256, layers=2, heads=4, kv_heads=4, intermediate=256, spread=1.5,
        model_type="qwen3_moe",
        extra={
            "num_experts": experts, "num_experts_per_tok": 1, "decoder_sparse_step": 1,
            "mlp_only_layers": [], "moe_intermediate_size": 256, "norm_topk_prob": True,
        },
    )  # fmt: skip


_EXPERT_BYTES = 2 * 3 * 256 * 256 * 4
"""Two layers, three matrices, float32."""
SIZED = {"stepping": stepping, "bank": bank}
"""Shapes of any size."""
SPECIAL = ("<|im_end|>", "<|im_start|>")
PROMPT_TOKENS = 200
_TEXT = (
    "the of and to in is that for it as was with be by on not he his but at are this have from or "
    "had an they which one you were her all she there would their we him been has when who will "
    "more no if out so said what up its about into than them can only other new some could time "
    "these two may then do first any my now such like our over man me even most made after also "
    "did many before must through back years where much your way well down should because each "
    "server answers request stream token batch model prompt step queue worker policy memory load"
)
_WORDS = _TEXT.split()


def make(folder: Path, shape: str, size: int | None = None, seed: int = 0) -> Path:
    """A complete model folder; `size` is for those of SIZED."""
    chosen = SHAPES[shape] if size is None else SIZED[shape](size)
    make_model(folder, chosen, seed=seed)
    write_tokenizer(folder, chosen.vocab)
    _silence_special_tokens(folder)
    return folder


def make_prompts(folder: Path, streams: int, seed: str) -> list[str]:
    """A user message per stream, each PROMPT_TOKENS long in the model's template, none alike."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [_make_prompt(tokenizer, random.Random(f"{seed}/{i}")) for i in range(streams)]


def _make_prompt(tokenizer: object, draw: random.Random) -> str:
    words: list[str] = []
    while _length(tokenizer, words) < PROMPT_TOKENS:
        words.append(draw.choice(_WORDS))
    while _length(tokenizer, words) > PROMPT_TOKENS:
        words.pop()
    while _length(tokenizer, words) < PROMPT_TOKENS:
        words.append("a")
    return " ".join(words)


def words(draw: random.Random, count: int) -> str:
    """So many of those that prompts are made of: no fewer tokens."""
    return " ".join(draw.choices(_WORDS, k=count))


def _length(tokenizer: object, words: list[str]) -> int:
    rendered = (
        f"<|im_start|>user\n{' '.join(words)}<|im_end|>\n<|im_start|>assistant\n"  # CHAT_TEMPLATE
    )
    return len(tokenizer.encode(rendered, add_special_tokens=False).ids)


def write_tokenizer(folder: Path, vocabulary: int) -> None:
    """BPE over printable ASCII: as costly to use as any other, but without parts of characters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    visible = string.ascii_letters + string.digits + string.punctuation
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=[*visible, "\u0120", "\u010a"],  # as ByteLevel writes space and newline
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    assert tokenizer.get_vocab_size() == vocabulary, "the corpus gives too few merges"
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIAL[0],
        "model_max_length": 1_000_000,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def _corpus() -> list[str]:
    """The prompts' words, and invented ones for the merges that are still missing."""
    draw = random.Random(0)
    syllables = [a + b for a in "bcdfghklmnprstvwz" for b in "aeiou"]
    invented = ["".join(draw.choices(syllables, k=3)) for _ in range(400)]
    return [" ".join(draw.choices(_WORDS + invented, k=12)) for _ in range(400)]


def _silence_special_tokens(folder: Path) -> None:
    import mlx.core as mx

    file = str(folder / "model.safetensors")
    weights = mx.load(file)
    mx.eval(weights)
    name = "model.embed_tokens.weight"
    weights[name][: len(SPECIAL)] = 0.0
    mx.save_safetensors(file, weights, metadata={"format": "mlx"})


def parameters(folder: Path) -> int:
    """How many numbers the model holds: its files are those of one type and little else."""
    dtype = json.loads((folder / "config.json").read_text())["torch_dtype"]
    size = {"float32": 4, "bfloat16": 2}[dtype]
    return (folder / "model.safetensors").stat().st_size // size


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write model folders.")
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--shape", choices=[*SHAPES, *SIZED], default="tiny")
    parser.add_argument(
        "--size", type=int, nargs="+", help="of each: layers of stepping, megabytes of bank"
    )
    arguments = parser.parse_args()
    sizes = arguments.size or [None] * len(arguments.folders)
    for seed, (folder, size) in enumerate(zip(arguments.folders, sizes, strict=True)):
        make(folder, arguments.shape, size, seed)
