"""How the engine shares its time between prompts and answers, as it was last told."""

from __future__ import annotations

from mlxd.ipc.messages import Tuning


class Tuned:
    """What is in force now. One for a worker: an engine that is made anew finds it as it was."""

    def __init__(self, tuning: Tuning | None = None) -> None:
        self.now = tuning or Tuning()
