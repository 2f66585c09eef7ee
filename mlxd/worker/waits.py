"""Who waits for whose prompt: those that begin alike are not read side by side. Pure.

What two prompts share is read once, by the one that is read first; the other goes on from what is
kept of that. Nobody waits for somebody of whom nothing will serve it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mlxd.core.beginnings import common
from mlxd.ipc.messages import TOKEN_BYTES, packed
from mlxd.worker.engine import Prompt

LEAST_SHARED = 128
"""Tokens that another prompt must spare, or nobody waits for it."""


@dataclass(slots=True, eq=False)
class Party:
    """One prompt that is not read to its end."""

    uid: int
    prompt: Prompt
    ids: bytes = b""
    """Its tokens, packed, once somebody asks."""
    shares: dict[int, int] = field(default_factory=dict)
    """By uid of another: how many of its own tokens that one can spare it."""
    awaits: tuple[int, int] | None = None
    """Whom it waits for, and until that has read so many tokens."""
    disappointed: bool = False
    """It has waited for what then did not serve. It waits no more."""

    def packed(self) -> bytes:
        if not self.ids:
            self.ids = self.prompt.ids or packed(self.prompt.tokens)
        return self.ids


class Waits:
    """Prompts that are not read to their ends, as far as somebody looks at them."""

    def __init__(self, *, trimmable: bool) -> None:
        """`trimmable`: whether a part of what is kept serves; else only all of it."""
        self._trimmable = trimmable
        self._parties: dict[int, Party] = {}

    def add(self, uid: int, prompt: Prompt) -> None:
        """It is compared with all the others; one that is here stays as it is."""
        if uid in self._parties:
            return
        party = Party(uid, prompt)
        for other in self._parties.values():
            shared = _alike(party, other)
            if shared < LEAST_SHARED:
                continue
            for one, two in ((party, other), (other, party)):
                spared = self._spared(one.prompt, two.prompt, shared)
                if spared >= LEAST_SHARED:
                    one.shares[two.uid] = spared
        self._parties[uid] = party

    def leave(self, uid: int, *, read: bool) -> None:
        """It is read, or given up. Unknown ones are ignored."""
        if self._parties.pop(uid, None) is None:
            return
        for party in self._parties.values():
            party.shares.pop(uid, None)
            if not read and party.awaits is not None and party.awaits[0] == uid:
                party.awaits = None

    def lets(self, uid: int, before: Mapping[int, int], reach: Callable[[], int]) -> bool:
        """Whether a prompt may be read now; one that is unknown may. `before`: those that are read
        before it, with how much of them is. `reach`: how much of it is kept.
        """
        party = self._parties.get(uid)
        if party is None:
            return True
        self._look_back(party, before, reach)
        if not party.shares or party.disappointed:
            return True
        ahead = [
            (spared, -other)
            for other, spared in party.shares.items()
            if other in before and (self._trimmable or before[other] < spared)
        ]
        spared, other = max(ahead, default=(0, 0))
        if spared and spared >= reach() + LEAST_SHARED:
            party.awaits = -other, spared
        return party.awaits is None

    def awaits(self, uid: int) -> tuple[int, int]:
        """Whom one waits for that may not be read yet, and until that has read so many tokens."""
        awaits = self._parties[uid].awaits
        assert awaits is not None
        return awaits

    def awaited(self, uid: int) -> list[int]:
        """The lengths at which others wait for this one, in rising order."""
        found = (party.awaits for party in self._parties.values() if party.awaits is not None)
        return sorted({length for other, length in found if other == uid})

    def _look_back(self, party: Party, before: Mapping[int, int], reach: Callable[[], int]) -> None:
        """At what it has waited for, if that has come: does it serve?"""
        if party.awaits is None:
            return
        other, spared = party.awaits
        come = other not in self._parties or before.get(other, 0) >= spared
        party.disappointed = come and reach() < spared
        party.awaits = None

    def _spared(self, asks: Prompt, gives: Prompt, shared: int) -> int:
        """How much of a prompt need not be read once another one is, that begins alike."""
        most = min(shared, len(asks.tokens) - 1, len(gives.tokens) - 1)
        if asks.owner == gives.owner:
            return most if self._trimmable else _turn(gives, most)
        public = gives.shared
        return min(most, public) if self._trimmable or most >= public else 0


def _turn(prompt: Prompt, length: int) -> int:
    """Where there is one not long before, its turn's end: there its caches are kept anyhow."""
    ends = [end for end in prompt.boundaries if length - LEAST_SHARED < end <= length]
    return ends[-1] if ends else length


def _alike(one: Party, two: Party) -> int:
    """Tokens that both begin with."""
    if one.prompt.tokens[:LEAST_SHARED] != two.prompt.tokens[:LEAST_SHARED]:
        return 0
    first, second = one.packed(), two.packed()
    return common(first, second) // TOKEN_BYTES
