"""How far a load is: what its worker has said, and what is left of it by earlier loads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mlxd.core.clock import Clock
from mlxd.ipc import messages as ipc

Stage = Literal["back_off", "room", "process"] | ipc.Stage
"""What it waits for: the next start of an engine that failed, room in memory and its turn, or its
process; or what its worker does."""
_IN_WORDS: dict[Stage, str] = {
    "back_off": "is started again after a failure",
    "room": "waits for room",
    "process": "starts its process",
    "weights": "reads its weights",
    "adapter": "puts its adapter on",
    "tokenizer": "reads its tokenizer",
    "first_step": "makes its first step",
    "layout": "lays out its weights",
    "footprint": "is measured",
}


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """One load at one moment."""

    stage: Stage
    share: float
    """Of its weights' bytes, those that are read: 0 to 1."""
    left: float | None = None
    """Seconds, by earlier loads of it, and its wait for the next start; None: nobody knows."""

    @property
    def percent(self) -> int:
        return int(100 * self.share)

    def __str__(self) -> str:
        """In words, and in ASCII."""
        left = f", about {self.left:.0f} s left" if self.left else ""
        if self.stage in ("back_off", "room", "process"):
            return f"loading: it {_IN_WORDS[self.stage]}{left}"
        return f"loading {self.percent} %: it {_IN_WORDS[self.stage]}{left}"


WAITS = LoadProgress("room", 0.0)
STARTS = LoadProgress("process", 0.0)


def backing_off(wait: float, usual: float | None) -> LoadProgress:
    """`wait`: seconds to its next start; `usual`: what its loads have taken."""
    return LoadProgress("back_off", 0.0, wait + usual if usual is not None else None)


class Told:
    """What one worker has said of its load so far."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._said: ipc.Loading | None = None
        self._since = 0.0
        """When it began to load, once it has."""
        self._share = 0.0

    def hear(self, said: ipc.Loading) -> None:
        if self._said is None:
            self._since = self._clock.monotonic()
        self._said = said
        if said.stage != "weights":
            self._share = 1.0
        elif said.total:
            self._share = said.done / said.total

    def progress(self, usual: float | None) -> LoadProgress:
        """`usual`: seconds that its loads have taken; None: it was never loaded."""
        if self._said is None:
            return STARTS
        left = usual - (self._clock.monotonic() - self._since) if usual is not None else None
        return LoadProgress(self._said.stage, self._share, left if left and left > 0 else None)
