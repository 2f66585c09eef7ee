"""How a model that fills a gap is asked to: each family's marks around what is there already."""

from __future__ import annotations

import json
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Marks:
    """One family's. The answer comes behind the last of the three."""

    before: str
    """Stands in front of the text before the gap."""
    behind: str
    """Stands in front of the text behind the gap."""
    gap: str
    """Stands at the end; empty: nothing does."""
    behind_first: bool = False
    """The text behind the gap is read before the one in front of it."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name in (self.before, self.behind, self.gap) if name)


FAMILIES = (
    Marks("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen, CodeGemma, Yi, Granite 4
    Marks("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite, Stable Code
    Marks("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    Marks("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek
    Marks("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
    Marks("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),  # GLM, CodeGeeX
    Marks("<[fim-prefix]>", "<[fim-suffix]>", "<[fim-middle]>", behind_first=True),  # Seed-Coder
    Marks("[PREFIX]", "[SUFFIX]", "", behind_first=True),  # Codestral
)
ENDS = (
    *("<|endoftext|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|file_separator|>"),
    *("<fim_pad>", "<file_sep>", "<filename>", "<reponame>", "▁<EOT>", "<｜end▁of▁sentence｜>"),
)
"""What a model says when the gap is full, and its config may not know as an end."""


def written_in(tokenizer: str) -> bool:
    """Whether a tokenizer's file, or the part of it that names added tokens, has one's marks."""
    return any(all(_is_written(name, tokenizer) for name in marks.names) for marks in FAMILIES)


def _is_written(name: str, text: str) -> bool:
    return f'"{name}"' in text or (not name.isascii() and json.dumps(name) in text)
