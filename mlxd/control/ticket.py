"""One request's way through admission: its wait, and the right to run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mlxd.control.place import Place


class Ticket:
    """One request that was let in, or waits; given back once."""

    def __init__(self, place: Place, loaded: Callable[[Place], None]) -> None:
        self.place = place
        self.tokens: int | None = None
        """That it took, once that is known."""
        self.took: float | None = None
        """The same, as its turn in the queue counts them: see costs.py."""
        self.entered = False
        """Its block has begun."""
        self._loaded = loaded

    def loaded(self) -> None:
        """It waits no longer for that."""
        if self.place.loading:
            self._loaded(self.place)


class Waiter(asyncio.Future[None]):
    """Tells at once that it is cancelled. Its callbacks come after whatever is ready by then, and
    that may give away a slot.
    """

    def __init__(self, on_cancel: Callable[[], None]) -> None:
        super().__init__()
        self._on_cancel = on_cancel

    def cancel(self, msg: object = None) -> bool:
        cancelled = super().cancel(msg)
        if cancelled:
            self._on_cancel()
        return cancelled
