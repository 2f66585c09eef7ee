"""A daemon with a defect: `python sabotage.py DEFECT python -m mlxd serve ...`.

The defect shows when the daemon gets SIGUSR1. `block:SECONDS` stops its event loop that long;
`deaf` leaves the loop turning and takes no connection any more; `mute` takes them and answers
nobody; `lose:PART` has the task of a part fail; `end:PART` has it end without a word.
`rescan:SECONDS` holds from the start: that long no policy file is looked at unless the
system tells of an edit.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from mlxd.control.guard import Guard
from mlxd.control.spares import Spares
from mlxd.policy import watch
from mlxd.server.listener import Listener
from mlxd.server.watchdog import Heartbeat

PARTS: dict[str, Any] = {
    "guard": Guard,
    "watcher": watch.Watcher,
    "heartbeat": Heartbeat,
    "spares": Spares,
}


def main() -> int:
    defect, _, detail = sys.argv[1].partition(":")
    match defect:
        case "block":
            _on_signal(lambda: time.sleep(float(detail)))
        case "deaf":
            _be_deaf()
        case "mute":
            _be_mute()
        case "rescan":
            watch.RESCAN_SECONDS = float(detail)
        case _:
            _lose(PARTS[detail], silently=defect == "end")
    from mlxd.cli import main as command

    return command(sys.argv[5:])


def _on_signal(act: Any) -> None:
    """On the loop, once the daemon serves."""
    opened = Listener.open

    def open_and_wait(self: Listener, *arguments: Any) -> None:
        opened(self, *arguments)
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, act)

    Listener.open = open_and_wait  # type: ignore[method-assign, assignment]


def _be_deaf() -> None:
    def deafen(listener: Listener) -> None:
        for door in listener._doors:
            asyncio.get_running_loop().remove_reader(door.sock)

    _on_signal_for_listeners(deafen)


def _be_mute() -> None:
    async def never(request: object) -> Any:
        await asyncio.Event().wait()

    def silence(listener: Listener) -> None:
        listener._server.request_handler = never

    _on_signal_for_listeners(silence)


def _on_signal_for_listeners(act: Callable[[Listener], None]) -> None:
    listeners: list[Listener] = []
    opened = Listener.open

    def remembered(self: Listener, *arguments: Any) -> None:
        opened(self, *arguments)
        listeners.append(self)

    Listener.open = remembered  # type: ignore[method-assign, assignment]

    def act_on_all() -> None:
        for listener in listeners:
            act(listener)

    _on_signal(act_on_all)


def _lose(part: Any, *, silently: bool) -> None:
    lost = asyncio.Event()
    ran = part.run

    async def run(self: Any) -> None:
        work = asyncio.create_task(ran(self))
        await lost.wait()
        work.cancel()
        if not silently:
            raise RuntimeError("sabotage")

    part.run = run
    _on_signal(lost.set)


if __name__ == "__main__":
    sys.exit(main())
