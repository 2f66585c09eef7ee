"""Tokenizer: a byte-level BPE trained on the guide's own chats, so that any Unicode round-trips."""

from __future__ import annotations

import json
from pathlib import Path

from chats import Mixture
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL = ("<|im_start|>", "<|im_end|>")
MARKS = ("<tool_call>", "</tool_call>")
EOS = "<|im_end|>"
# Words with their space, digits one by one, marks apart: GPT-4's split, with single digits.
SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def train_tokenizer(vocab_size: int, examples: int, seed: int) -> Tokenizer:
    """A tokenizer of exactly `vocab_size` tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(MARKS),
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    mixture = Mixture(seed)
    tokenizer.train_from_iterator(_texts(mixture, examples), trainer)
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in MARKS])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, out: Path, context: int, template: str) -> None:
    """tokenizer.json, its configuration and the chat template, as transformers reads them."""
    document = json.loads(tokenizer.to_str())
    (out / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS,
        "pad_token": EOS,
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": False,
    }
    text = json.dumps(config, indent=2) + "\n"
    (out / "tokenizer_config.json").write_text(text, encoding="utf-8")
    (out / "chat_template.jinja").write_text(template, encoding="utf-8")


def _texts(mixture: Mixture, examples: int) -> list[str]:
    texts = []
    for _ in range(examples):
        chat = mixture.draw()
        texts += [chat.prompt, chat.answer]
    return texts
