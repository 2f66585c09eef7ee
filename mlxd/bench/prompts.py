"""Prompts of an exact length, no two alike: nothing that a cache holds helps with them."""

from __future__ import annotations

import json
import random
from pathlib import Path

_LOWEST, _HIGHEST = 256, 50_000
"""Of large vocabularies: below are bytes, and what stands for itself is at the end."""
_SMALLEST = 32


class UnknownVocabulary(Exception):
    """The model's config does not say how many tokens it knows."""


class Prompts:
    """Draws tokens that no special one is likely to be among."""

    def __init__(self, vocabulary: int, seed: int | None = None) -> None:
        self._draw = random.Random(seed)
        self._from = min(_LOWEST, vocabulary // 4)
        self._to = min(_HIGHEST, 3 * vocabulary // 4)

    def draw(self, tokens: int, count: int) -> list[list[int]]:
        return [
            [self._draw.randrange(self._from, self._to) for _ in range(tokens)]
            for _ in range(count)
        ]


def vocabulary_of(folder: Path) -> int:
    """How many tokens the model in this folder knows. Raises UnknownVocabulary."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        inner = config.get("text_config", config)
        found = config.get("vocab_size", inner.get("vocab_size"))
    except (OSError, ValueError, AttributeError) as error:
        raise UnknownVocabulary(f"{folder / 'config.json'} cannot be read: {error}") from error
    if type(found) is not int or found < _SMALLEST:
        raise UnknownVocabulary(f"{folder / 'config.json'} does not say its vocab_size")
    return found
