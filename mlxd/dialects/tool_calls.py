"""The ids of tool calls, made from what is known: the same call has the same id each time."""

from __future__ import annotations

import hashlib

_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
_LENGTH = 8


def tool_call_id(call_id: str, index: int, *, prefix: str = "call_") -> str:
    """`prefix` and 8 of [a-z0-9]."""
    digest = hashlib.blake2s(f"{call_id}:{index}".encode(), digest_size=_LENGTH).digest()
    return prefix + "".join(_ALPHABET[byte % len(_ALPHABET)] for byte in digest)
