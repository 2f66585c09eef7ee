"""Who asks: what is known of a request's client before anything else of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Priority = Literal["high", "medium", "low"]
PRIORITIES: tuple[Priority, ...] = ("high", "medium", "low")


@dataclass(frozen=True, slots=True)
class Caller:
    """One client, as admission counts it."""

    address: str
    """Of the client, not of a trusted proxy before it; the /64 of an IPv6 one."""
    key: str = ""
    """The id of its API key, which is no secret; empty: it has none that is known."""
    tenant: str = ""
    """The tenant of that key; empty: anonymous."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Those that a rate rule counts by (`header:NAME`), by their names in lower case."""
    owner: bool = False
    """The daemon's owner: no tenant's limits are for it, nor those of who has no key."""

    @property
    def name(self) -> str:
        """Whose fair share a request takes: all keys of a tenant are one client, and each address
        without a key.
        """
        return self.tenant or self.address
