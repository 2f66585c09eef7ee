"""Texts into tokens, where most of a text was put into tokens before: agents send the same ten
thousand tokens with each turn.

A tokenizer looks for its special tokens first, and treats what stands between two of them by
itself. So what comes before a special token does not depend on what comes behind it, nor, from that
token on, the other way round; `_parts_at` looks whether that is so.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter
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
        begun = self._begun(text, special=special)
        added = special and not begun.length
        rest = self._whole(text[begun.length :], special=added)
        self._remember(text, special, self._marks.placed(text, begun, rest, added=added))
        return [*begun.tokens, *rest]

    def _whole(self, text: str, *, special: bool) -> list[int]:
        tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=special)
        return tokens

    def _begun(self, text: str, *, special: bool) -> _Known:
        """The longest beginning that is known, up to a mark."""
        places = [
            (known.mark_within(common(text, before)), known)
            for (before, added), known in self._known.items()
            if added == special
        ]
        place, known = max(places, key=itemgetter(0), default=(_START, _NOTHING))
        return known.until(place) if place.at else _NOTHING

    def _remember(self, text: str, special: bool, known: _Known | None) -> None:
        if self._known.pop((text, special), None) is not None:
            self._characters -= len(text)
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


@dataclass(frozen=True, slots=True)
class _Known:
    """The tokens of a text, and where its marks are."""

    length: int
    """Of the text, in characters."""
    tokens: array[int]
    places: tuple[_Place, ...]
    ends: tuple[int, ...]
    """Where each mark ends in the text."""

    def mark_within(self, length: int) -> _Place:
        """The last that is wholly within so many characters."""
        number = bisect_right(self.ends, length)
        return self.places[number - 1] if number else _START

    def until(self, place: _Place) -> _Known:
        """What comes before one of its marks."""
        number = bisect_left(self.places, place)
        tokens = self.tokens[: place.token]
        return _Known(place.at, tokens, self.places[:number], self.ends[:number])


_START = _Place(0, 0)
_NOTHING = _Known(0, array("I"), (), ())


class _Marks:
    """The special tokens of a tokenizer at which a text can be divided."""

    def __init__(self, names: dict[str, int], added: int) -> None:
        """`added`: how many the tokenizer puts before a text."""
        self._added = added
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
        found = cls(special, len(tokenizer.encode("", add_special_tokens=True)))
        sample = islice(special, 4)
        return found if all(_parts_at(tokenizer, name) for name in sample) else None

    def placed(self, text: str, begun: _Known, rest: list[int], *, added: bool) -> _Known | None:
        """A text of which what has `begun` is not looked at again. `rest`: the tokens behind that;
        `added`: with what the tokenizer puts before a text.

        None where it is not certain which token is which mark's: what the tokenizer does not know
        may be a special token, too.
        """
        spots = list(self._pattern.finditer(text, begun.length))
        hits = [n for n, token in enumerate(rest, len(begun.tokens)) if token in self._ids]
        before = self._added if added else 0
        if len(hits) != before + len(spots):
            return None
        found = zip(spots, hits[before:], strict=True)
        places = tuple(_Place(spot.start(), hit) for spot, hit in found)
        ends = tuple(spot.end() for spot in spots)
        tokens = begun.tokens + array("I", rest)
        return _Known(len(text), tokens, begun.places + places, begun.ends + ends)


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
