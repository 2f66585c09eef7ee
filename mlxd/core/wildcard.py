"""Patterns in which `*` stands for any text, as policies write them. Nothing else is special."""

from __future__ import annotations


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


def literal_prefix(pattern: str) -> str:
    """What every text that matches begins with."""
    return pattern.partition("*")[0]
