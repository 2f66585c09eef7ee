"""How a worker's process ended, in one word that metrics and events can carry."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Literal

from mlxd.ipc.messages import EXIT_MEMORY

Verdict = Literal["stalled", "unresponsive", "suspended", "protocol", "canary", "over_limit"]
"""Why the daemon itself killed a worker that was not well; `suspended`: a signal had stopped it;
`over_limit`: its process held more than `memory.worker_limits.rss_hard`.
"""


@dataclass(frozen=True, slots=True)
class Exit:
    """The end of one process."""

    status: int
    """As the system tells it: negative for a signal."""
    asked: bool = False
    """The daemon wanted it gone: evicted, idle, or the daemon ends."""
    verdict: Verdict | None = None
    """Set where the daemon killed it for not being well."""

    @property
    def reason(self) -> str:
        """`stopped`, a verdict, `out_of_memory`, the name of a signal, or `exit N`."""
        if self.asked:
            return "stopped"
        if self.verdict is not None:
            return self.verdict
        if self.status == EXIT_MEMORY:
            return "out_of_memory"
        if self.status < 0:
            return _signal_name(-self.status)
        return f"exit {self.status}"

    @property
    def from_outside(self) -> bool:
        """A person or the system sent the signal, or the process had grown over all that it did:
        nothing that the worker ran is to blame for it.

        SIGKILL is also what an exhausted system sends; who knows of memory pressure decides.
        """
        if self.asked or self.verdict is not None:
            return self.verdict in ("suspended", "over_limit")
        return self.status in _SENT


_SENT = frozenset(
    -number for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
