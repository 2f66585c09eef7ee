"""Patterns in which `*` stands for any text, as policies write them. Nothing else is special."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def matches(pattern: str, text: str) -> bool:
    """In time linear in both, whatever a client sends."""
    first, *others = pattern.split("*")
    if not others:
        return text == pattern
    if not text.startswith(first):
        return False
    at = len(first)
    for part in others[:-1]:
        found = text.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return text.endswith(others[-1]) and len(text) - len(others[-1]) >= at


class Patterns:
    """Several of them; those without `*`, which may be hundreds, are looked up."""

    def __init__(self, patterns: Iterable[str]) -> None:
        found = list(patterns)
        self._whole = frozenset(one for one in found if "*" not in one)
        self._others = [one for one in found if "*" in one]

    def match(self, texts: Sequence[str]) -> bool:
        """Whether one of them does one of these."""
        return any(text in self._whole for text in texts) or any(
            matches(pattern, text) for pattern in self._others for text in texts
        )


def literal_prefix(pattern: str) -> str:
    """What every text that matches begins with."""
    return pattern.partition("*")[0]
