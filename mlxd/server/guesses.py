"""Who guesses API keys: how many unknown ones each address came with, and for how long it is
refused then, but for the keys that it came with before. The same one again is no new guess.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from dataclasses import dataclass, field

from mlxd.policy.schema.clients import Guesses as Limits

MOST = 4096
"""Addresses that are remembered, and keys with which they came; of more, the one longest silent is
forgotten.
"""


class Guesses:
    """For one thread. `now` is on a monotonic clock."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._salt = os.urandom(16)
        """What is remembered of a key says nothing of it."""
        self._guessers: OrderedDict[str, _Guesser] = OrderedDict()
        self._familiar: OrderedDict[tuple[str, str], None] = OrderedDict()
        """Addresses and the ids of keys with which they came."""

    def __len__(self) -> int:
        return len(self._guessers)

    def succeed(self, address: str, key_id: str) -> None:
        """It came with this key, which is valid."""
        self._familiar[address, key_id] = None
        self._familiar.move_to_end((address, key_id))
        while len(self._familiar) > self._most:
            self._familiar.popitem(last=False)

    def succeeded(self, address: str, key_id: str) -> bool:
        """Whether it came with this key before."""
        return (address, key_id) in self._familiar

    def penalty(self, address: str, now: float) -> float:
        """Seconds for which it is still refused; 0: it is not."""
        guesser = self._guessers.get(address)
        return max(0.0, guesser.until - now) if guesser is not None else 0.0

    def add(self, address: str, key: str, limits: Limits, now: float) -> None:
        """It came with this one, which is unknown."""
        guesser = self._guessers.setdefault(address, _Guesser())
        self._guessers.move_to_end(address)
        times = guesser.times
        while times and next(iter(times.values())) <= now - limits.window:
            times.popitem(last=False)
        times.setdefault(self._digest(key), now)
        if len(times) >= limits.max:
            guesser.until = now + limits.penalty
            times.clear()
        while len(self._guessers) > self._most:
            self._guessers.popitem(last=False)

    def _digest(self, key: str) -> bytes:
        said = key.encode("utf-8", "surrogateescape")
        return hashlib.blake2b(said, digest_size=12, key=self._salt).digest()


@dataclass(slots=True)
class _Guesser:
    times: OrderedDict[bytes, float] = field(default_factory=OrderedDict)
    """By the digest of each unknown key when it was first sent, the oldest first."""
    until: float = 0.0
