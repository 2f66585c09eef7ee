"""Token ids to text, one at a time: complete characters only, and never U+FFFD."""

from __future__ import annotations

import codecs
from functools import cached_property
from typing import Any, Protocol

from mlx_lm.tokenizer_utils import (
    BPEStreamingDetokenizer,
    SPMStreamingDetokenizer,
    TokenizerWrapper,
)

_REPLACEMENT = "\ufffd"


class Detokenizer(Protocol):
    """The text of one sequence as it grows."""

    def add(self, token: int) -> str:
        """The text that is complete with this token; half a character waits."""
        ...

    def finish(self) -> str:
        """The rest; half a character is dropped."""
        ...


class _Ids:
    """The ids that a tokenizer may be asked for: one in Rust for any, one in Python for its own.
    Some leave gaps, and end beyond their number; beyond the last are rows by which some models'
    vocabularies exceed their tokenizer's.
    """

    def __init__(self, tokenizer: TokenizerWrapper) -> None:
        self._tokenizer = tokenizer
        self._any = hasattr(tokenizer, "backend_tokenizer")
        self._count = len(tokenizer)

    def __contains__(self, token: int) -> bool:
        return self._any or token < self._count or token in self._beyond

    @cached_property
    def _beyond(self) -> frozenset[int]:
        ids = self._tokenizer.get_vocab().values()
        return frozenset(id for id in ids if id >= self._count)


class ByteTable(dict[int, bytes]):
    """Each token's own bytes; worked out on first use and kept."""

    def __init__(self, tokenizer: TokenizerWrapper, ids: _Ids) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._ids = ids
        self._added = frozenset(tokenizer.added_tokens_decoder)
        self._spm = isinstance(tokenizer.detokenizer, SPMStreamingDetokenizer)

    def __missing__(self, token: int) -> bytes:
        raw = self[token] = self._bytes_of(token)
        return raw

    def _bytes_of(self, token: int) -> bytes:
        piece = self._piece(token)
        if piece is None:
            return b""
        if self._spm:
            return _spm_bytes(piece)
        if token in self._added:
            return piece.encode("utf-8", "ignore")
        return byte_level_bytes(piece)

    def _piece(self, token: int) -> str | None:
        """None where there is no such token."""
        if token not in self._ids:
            return None
        piece: str | None = self._tokenizer.convert_ids_to_tokens(token)
        return piece


class _ByteDetokenizer:
    """For byte-level BPE and for SentencePiece with byte fallback."""

    __slots__ = ("_pending", "_table", "_trim")

    def __init__(self, table: ByteTable, trim: bool) -> None:
        self._table = table
        self._trim = trim
        self._pending = b""

    def add(self, token: int) -> str:
        raw = self._table[token]
        if self._pending:
            raw = self._pending + raw
        text, consumed = codecs.utf_8_decode(raw, "ignore", False)
        self._pending = raw[consumed:]
        if self._trim and text:
            self._trim = False
            text = text.removeprefix(" ")
        return text.replace(_REPLACEMENT, "")

    def finish(self) -> str:
        self._pending = b""
        return ""


class _AnyDetokenizer:
    """For every other tokenizer: mlx-lm's, which decodes the line again for each token."""

    def __init__(self, detokenizer: Any, ids: _Ids) -> None:
        self._detokenizer = detokenizer
        self._ids = ids

    def add(self, token: int) -> str:
        """Tokenizers written in Python raise for an id that they do not have."""
        if token not in self._ids:
            return ""
        self._detokenizer.add_token(token)
        return self._segment()

    def finish(self) -> str:
        self._detokenizer.finalize()
        return self._segment()

    def _segment(self) -> str:
        segment: str = self._detokenizer.last_segment
        return segment.replace(_REPLACEMENT, "")


class Detokenizers:
    """Makes detokenizers for one tokenizer; and knows each token's bytes."""

    def __init__(self, tokenizer: TokenizerWrapper) -> None:
        self._tokenizer = tokenizer
        self._ids = _Ids(tokenizer)
        kind = tokenizer.detokenizer
        self._bytewise = isinstance(kind, BPEStreamingDetokenizer | SPMStreamingDetokenizer)
        self._trim = getattr(kind, "trim_space", True)
        self._table = ByteTable(tokenizer, self._ids) if self._bytewise else None

    def make(self, *, spaced: bool = False) -> Detokenizer:
        """`spaced`: a space that it begins with is meant, as where a text goes on; in front of an
        answer a tokenizer's first word has one that nobody means.
        """
        if self._table is not None:
            return _ByteDetokenizer(self._table, self._trim and not spaced)
        return _AnyDetokenizer(self._tokenizer.detokenizer, self._ids)

    def bytes_of(self, token: int) -> bytes:
        """The token's own bytes: possibly half a character."""
        if self._table is not None:
            return self._table[token]
        if token not in self._ids:
            return b""
        text: str = self._tokenizer.decode([token])
        return text.encode("utf-8", "ignore")


def _spm_bytes(piece: str) -> bytes:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    return piece.replace("\u2581", " ").encode("utf-8", "ignore")


def byte_level_bytes(piece: str) -> bytes:
    """Characters stand for bytes, as GPT-2 drew them up; a piece with others is text."""
    try:
        return bytes([BYTE_ALPHABET[character] for character in piece])
    except KeyError:
        return piece.encode("utf-8", "ignore")


def _byte_alphabet() -> dict[str, int]:
    """Printable Latin-1 stands for itself, the other bytes for U+0100 and up in order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update((chr(256 + n), byte) for n, byte in enumerate(others))
    return alphabet


BYTE_ALPHABET = _byte_alphabet()
