"""The signals that end a daemon: heard before its start is written down, and backed by a limit."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Callable
from types import FrameType

from mlxd.core.stopping import FREEING_SECONDS
from mlxd.policy.store import PolicyStore
from mlxd.server.watchdog import end_process_after

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SLACK_SECONDS = 30.0
_HASTE_SECONDS = 10.0

Told = Callable[[signal.Signals], None]


class Stops:
    """From `hear` on a signal kills the process no more; `tell` says whom to tell.

    Whatever hangs then, the process ends: late after a first signal, soon after a second.
    """

    def __init__(self, policies: PolicyStore) -> None:
        self._policies = policies
        self._noted: list[signal.Signals] = []
        self._echoes: Counter[int] = Counter()
        """Of those, how many the loop tells of once more: they came while it ran."""
        self._told: Told | None = None
        self._count = 0

    def hear(self) -> None:
        for number in _SIGNALS:
            signal.signal(number, self._signalled_early)

    def tell(self, told: Told) -> None:
        """On the running loop, from now on; of those that came before, too."""
        self._told = told
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._signalled_on_loop, number)
        noted, self._noted = self._noted, []
        for number in noted:
            told(number)

    def patience(self) -> float:
        """Seconds that a whole drain may take."""
        drain = self._policies.current.server.drain
        return (
            float(drain.not_ready_delay) + float(drain.grace) + self._haste()
            + FREEING_SECONDS + _SLACK_SECONDS
        )  # fmt: skip

    def _signalled_early(self, number: int, _frame: FrameType | None) -> None:
        self._echoes[number] += _reaches_a_loop()
        self._signalled(signal.Signals(number))

    def _signalled_on_loop(self, number: signal.Signals) -> None:
        if self._echoes[number]:
            self._echoes[number] -= 1
        else:
            self._signalled(number)

    def _signalled(self, number: signal.Signals) -> None:
        self._count += 1
        if self._count <= 2:
            end_process_after(self._haste() if self._count == 2 else self.patience())
        if self._told is None:
            self._noted.append(number)
        else:
            self._told(number)

    def _haste(self) -> float:
        """Seconds that an end at once may take."""
        return float(self._policies.current.timeouts.shutdown.term_grace) + _HASTE_SECONDS


def _reaches_a_loop() -> bool:
    """Whether one that runs hears of each signal, whoever handles it."""
    file = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(file)
    return file >= 0
