"""One request's way through admission: its wait, and the right to run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mlxd.control.place import Place
from mlxd.policy.policy_set import PolicySet


class Ticket:
    """One admitted request, and the policies it runs under until its end."""

    def __init__(self, place: Place, loaded: Callable[[Place], None]) -> None:
        self.place = place
        self.tokens: int | None = None
        """That it took, once that is known."""
        self.took: float | None = None
        """The same, as its turn in the queue counts them: see costs.py."""
        self.entered = False
        """Its block has begun."""
        self._loaded = loaded

    @property
    def client(self) -> str:
        return self.place.client

    @property
    def model(self) -> str:
        return self.place.model

    @property
    def policies(self) -> PolicySet:
        return self.place.applicant.policies

    @property
    def admitted(self) -> float:
        """On the clock of admission."""
        return self.place.started or 0.0

    @property
    def loading(self) -> bool:
        """It waits for its model while another one could serve."""
        return self.place.loading

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
