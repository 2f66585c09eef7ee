"""The policies in force: one reference, replaced together with all that follows from it.

Preparing a new set may fail (load.py, appliers); putting it in force may not.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Sequence
from typing import Protocol

from mlxd.policy.policy_set import PolicySet


class PrepareFailed(Exception):
    """What new policies need cannot be had: a port, say. `key` is the policy to change."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key
        self.message = message


class Prepared(Protocol):
    """All that can go wrong has been done; the rest is two calls that cannot fail or await."""

    def commit(self) -> None:
        """The new policies are in force from here on."""
        ...

    def undo(self) -> None:
        """Back to what was, whether it was committed already or not."""
        ...


class Applier(Protocol):
    """A part of the daemon that does something when policies change."""

    async def prepare(self, old: PolicySet, new: PolicySet) -> Prepared:
        """Get ready without changing anything that shows. Raises PrepareFailed."""
        ...


class Live:
    """An applier with nothing to prepare: a call that cannot fail."""

    def __init__(self, apply: Callable[[PolicySet], None]) -> None:
        self._apply = apply

    async def prepare(self, old: PolicySet, new: PolicySet) -> Prepared:
        return _Call(self._apply, old, new)


class _Call:
    def __init__(self, apply: Callable[[PolicySet], None], old: PolicySet, new: PolicySet) -> None:
        self._apply = apply
        self._old = old
        self._new = new
        self._committed = False

    def commit(self) -> None:
        self._committed = True
        self._apply(self._new)

    def undo(self) -> None:
        if self._committed:
            self._apply(self._old)


class PolicyStore:
    """Holds the set in force.

    `current` is one reference: whoever needs several values that fit together reads it once.
    """

    def __init__(self, current: PolicySet) -> None:
        self._current = current
        self._alive: weakref.WeakSet[PolicySet] = weakref.WeakSet([current])

    @property
    def current(self) -> PolicySet:
        return self._current

    @property
    def generations_alive(self) -> int:
        """Generations that somebody still works by, the present one included."""
        return len({policies.generation for policies in self._alive})

    def commit(self, new: PolicySet, prepared: Sequence[Prepared]) -> None:
        """Put `new` in force and commit all that was prepared for it, between two turns of the
        event loop. Should one of them fail all the same, the old set stays, and it raises: the
        caller undoes what was prepared.
        """
        with contextlib.ExitStack() as back:
            back.callback(setattr, self, "_current", self._current)
            self._current = new
            for one in prepared:
                one.commit()
            back.pop_all()
        self._alive.add(new)

    def refresh(self, same: PolicySet) -> None:
        """The same values and generation, set in other places: a comment moved them."""
        self._current = same
        self._alive.add(same)
