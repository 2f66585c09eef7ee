"""The policies in force. Preparing a new set may fail (load.py); putting it in force may not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from mlxd.policy.policy_set import PolicySet

Apply = Callable[[PolicySet], None]


class PolicyStore:
    """Holds the set in force and tells those who asked when it is replaced.

    `current` is one reference: whoever needs several values that fit together reads it once.
    """

    def __init__(self, current: PolicySet) -> None:
        self._current = current
        self._subscribers: list[Apply] = []

    @property
    def current(self) -> PolicySet:
        return self._current

    def subscribe(self, apply: Apply) -> Callable[[], None]:
        """Have `apply`, which must not fail, called with each later set. Returns its own end."""
        self._subscribers.append(apply)
        return lambda: self._subscribers.remove(apply)

    def replace(self, new: PolicySet) -> PolicySet:
        """Put `new` in force as the next generation and apply it, in order of subscription."""
        self._current = replace(new, generation=self._current.generation + 1)
        for apply in tuple(self._subscribers):
            apply(self._current)
        return self._current
