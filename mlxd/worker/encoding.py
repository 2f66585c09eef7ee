"""Texts into tokens, where most of a text was put into tokens before: agents send the same ten
thousand tokens with each turn.

A tokenizer looks for its special tokens first, and treats what stands between two of them by
itself. So what comes before a special token does not depend on what comes behind it, nor, from that
token on, the other way round; `_parts_at` looks whether that is so.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from collections import OrderedDict
from itertools import islice
from typing import NamedTuple

from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import AddedToken, Tokenizer

from mlxd.core.beginnings import common

LEAST = 2048
"""Characters; less is put into tokens in no time."""
MOST_TEXTS = 16
MOST_CHARACTERS = 1 << 22
"""Of all that are remembered."""
_SAMPLE = (" a b\n", "\n  c d")


class Encoding:
    """Of one tokenizer. Used by one thread."""

    def __init__(self, tokenizer: TokenizerWrapper) -> None:
        self._tokenizer = tokenizer
        self._marks = _Marks.of(tokenizer)
        self._known: OrderedDict[tuple[str, bool], _Known] = OrderedDict()
        """By text, and whether special tokens were added; the last used last."""
        self._characters = 0

    def encode(self, text: str, *, special: bool) -> list[int]:
        """`special`: with what the tokenizer puts before every text."""
        if len(text) < LEAST or self._marks is None:
            return self._whole(text, special=special)
        tokens = self._continued(text, special=special)
        if tokens is None:
            tokens = self._whole(text, special=special)
        self._remember(text, special, tokens)
        return tokens

    def _whole(self, text: str, *, special: bool) -> list[int]:
        tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=special)
        return tokens

    def _continued(self, text: str, *, special: bool) -> list[int] | None:
        """With the tokens of the longest beginning that is known; None: none is."""
        places = [
            (known.mark_within(common(text, before)), known)
            for (before, added), known in self._known.items()
            if added == special
        ]
        place, known = max(places, key=lambda one: one[0], default=(None, None))
        if known is None or not place or not place.at:
            return None
        rest = self._whole(text[place.at :], special=False)
        return [*known.tokens[: place.token], *rest]

    def _remember(self, text: str, special: bool, tokens: list[int]) -> None:
        assert self._marks is not None
        known = self._known.pop((text, special), None)
        if known is not None:
            self._characters -= len(text)
        known = known or self._marks.placed(text, tokens)
        if known is None:
            return
        self._known[text, special] = known
        self._characters += len(text)
        while len(self._known) > MOST_TEXTS or self._characters > MOST_CHARACTERS:
            (gone, _), _ = self._known.popitem(last=False)
            self._characters -= len(gone)


class _Place(NamedTuple):
    """Where a mark begins: in the text, and among its tokens."""

    at: int
    token: int


class _Known:
    """The tokens of one text, and where its marks are."""

    def __init__(self, tokens: list[int], places: list[_Place], ends: list[int]) -> None:
        self.tokens = array("I", tokens)
        self._places = places
        self._ends = ends
        """Where each mark ends in the text."""

    def mark_within(self, length: int) -> _Place:
        """The last that is wholly within so many characters."""
        number = bisect_right(self._ends, length)
        return self._places[number - 1] if number else _Place(0, 0)


class _Marks:
    """The special tokens of a tokenizer at which a text can be divided."""

    def __init__(self, names: dict[str, int]) -> None:
        self._ids = frozenset(names.values())
        longest_first = sorted(names, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)))

    @classmethod
    def of(cls, tokenizer: TokenizerWrapper) -> _Marks | None:
        """None where a text cannot be divided for certain."""
        if not isinstance(getattr(tokenizer, "backend_tokenizer", None), Tokenizer):
            return None
        added = tokenizer.added_tokens_decoder
        special = {token.content: id for id, token in added.items() if token.special}
        plain = all(_is_plain(token) for token in added.values() if token.special)
        if not special or not plain or not _only_begins(tokenizer):
            return None
        found = cls(special)
        sample = islice(special, 4)
        return found if all(_parts_at(tokenizer, name) for name in sample) else None

    def placed(self, text: str, tokens: list[int]) -> _Known | None:
        """None where it is not certain which token is which mark's."""
        spots = list(self._pattern.finditer(text))
        hits = [n for n, token in enumerate(tokens) if token in self._ids]
        before = len(hits) - len(spots)  # what the tokenizer put before the text
        if before < 0 or hits[:before] != list(range(before)):
            return None
        places = [_Place(spot.start(), hit) for spot, hit in zip(spots, hits[before:], strict=True)]
        return _Known(tokens, places, [spot.end() for spot in spots])


def _is_plain(token: AddedToken) -> bool:
    """Found wherever it stands, and takes nothing of what is around it."""
    return not (token.lstrip or token.rstrip or token.single_word or token.normalized)


def _only_begins(tokenizer: TokenizerWrapper) -> bool:
    """Whether all that it adds to a text of its own stands before it."""
    words = "".join(_SAMPLE)
    added = tokenizer.encode("", add_special_tokens=True)
    alone = tokenizer.encode(words, add_special_tokens=False)
    return bool(tokenizer.encode(words, add_special_tokens=True) == [*added, *alone])


def _parts_at(tokenizer: TokenizerWrapper, mark: str) -> bool:
    """Whether what stands on both sides of a mark is treated by itself."""
    before, behind = _SAMPLE

    def tokens(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    return tokens(before + mark + behind) == [*tokens(before), *tokens(mark + behind)]
