"""Which beginnings the operator wants kept: those of system prompts whose text fits a pattern."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable

from mlxd.core.request import GenerationRequest
from mlxd.core.wildcard import matches

_MOST_KNOWN = 512
_MOST_TEXT = 16 * 2**20
"""Characters of all texts that are remembered."""


class Keeping:
    """Remembers the texts behind beginnings, so that other patterns find them. For several threads:
    texts are known where requests are prepared, and asked about where their caches are kept.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._patterns: tuple[str, ...] = ()
        self._texts: OrderedDict[bytes, str] = OrderedDict()
        """By the tokens they became."""
        self._size = 0
        self._always: set[bytes] = set()
        """Those whose text nobody knows: they were kept when they went to the disk."""

    def apply(self, patterns: Iterable[str]) -> bool:
        """Whether that may change what is kept."""
        with self._lock:
            before, self._patterns = self._patterns, tuple(patterns)
            return before != self._patterns

    def note(self, ids: bytes, text: str) -> None:
        """The beginning `ids`, packed tokens, is what this system prompt became."""
        mark = _mark(ids)
        with self._lock:
            self._size += len(text) - len(self._texts.pop(mark, ""))
            self._texts[mark] = text
            self._always.discard(mark)
            while len(self._texts) > _MOST_KNOWN or self._size > _MOST_TEXT:
                _, gone = self._texts.popitem(last=False)
                self._size -= len(gone)

    def always(self, ids: bytes) -> None:
        """It was kept before, by patterns that may have been others."""
        with self._lock:
            mark = _mark(ids)
            if mark not in self._texts and len(self._always) < _MOST_KNOWN:
                self._always.add(mark)

    def keeps(self, ids: bytes) -> bool:
        with self._lock:
            mark = _mark(ids)
            text = self._texts.get(mark)
            if text is None:
                return mark in self._always and bool(self._patterns)
            return any(matches(pattern, text) for pattern in self._patterns)


def system_text(request: GenerationRequest) -> str:
    """What a request's conversation begins with, as far as it is the system's; empty: nothing."""
    texts: list[str] = []
    for message in request.messages or ():
        if message.role != "system":
            break
        texts.append(message.content)
    return "\n".join(texts)


def _mark(ids: bytes) -> bytes:
    return hashlib.blake2b(ids, digest_size=16).digest()
