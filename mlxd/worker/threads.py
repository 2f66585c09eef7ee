"""The threads beside the main one. None of them may end while the process goes on."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from mlxd.core.traces import print_trace

EXIT_BROKEN = 70
"""EX_SOFTWARE: a defect; nothing this process says any more should be trusted."""


def run_forever(name: str, turn: Callable[[], None]) -> None:
    """Call `turn` again and again, on a thread of its own; if it raises, the process ends."""
    threading.Thread(target=_run, args=[turn], name=name, daemon=True).start()


def _run(turn: Callable[[], None]) -> None:
    try:
        while True:
            turn()
    except BaseException as error:  # noqa: BLE001 - a deaf worker would be worse than a dead one
        print_trace(error)
        os._exit(EXIT_BROKEN)
