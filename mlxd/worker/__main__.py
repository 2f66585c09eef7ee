"""`python -m mlxd.worker --fd N`: one model over one socket, named by the first message there."""

from __future__ import annotations

import argparse
import gc
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from mlxd.core import traces
from mlxd.core.traces import print_trace
from mlxd.ipc.messages import EXIT_MEMORY, PROTOCOL, Hello, LoadFailed, Warm
from mlxd.worker import stand_in
from mlxd.worker.intake import Intake
from mlxd.worker.link import Link
from mlxd.worker.parent import end_with_parent
from mlxd.worker.refusal import LoadError
from mlxd.worker.threads import EXIT_BROKEN

if TYPE_CHECKING:
    from mlxd.ipc.messages import Ready
    from mlxd.worker.loop import Loop

EXIT_LOAD_FAILED = 1


def main() -> NoReturn:
    """Ends the process: 0 after `Shutdown`, 1 when the model does not load, 70 after a defect, 71
    when there was no memory.

    The interpreter is not taken down: it would end the other threads inside native code that
    cannot be left so, and then the process aborts (SIGABRT) instead of ending with its status.
    """
    traces.install()
    status = _served(_arguments())
    sys.stderr.flush()
    os._exit(status)


def _served(fd: int) -> int:
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    loop = _start(fd)
    if isinstance(loop, int):
        return loop
    try:
        loop.run()
    except Exception as error:  # noqa: BLE001 - the engine's state is unknown now; the daemon replaces us
        return _failed(loop, error)
    return 0


def _arguments() -> int:
    parser = argparse.ArgumentParser(prog="python -m mlxd.worker")
    parser.add_argument("--fd", type=int, required=True)
    fd: int = parser.parse_args().fd
    return fd


def _failed(loop: Loop, error: Exception) -> int:
    """The exit status for what the engine raised, said on stderr."""
    from mlxd.worker.allocator import is_exhaustion

    print_trace(error)
    if not is_exhaustion(error):
        return EXIT_BROKEN
    loop.last_words()
    return EXIT_MEMORY


def _start(fd: int) -> Loop | int:
    """The loop, or the exit status of a load that failed.

    The IO thread first: the daemon may go away while imports and weights load, or while this waits
    for a model, as a spare does.
    """
    sock = socket.socket(fileno=fd)
    end_with_parent(sock)
    link = Link(sock)
    link.send(Hello(PROTOCOL))
    intake = Intake(link)
    intake.start()
    try:
        assemble = _imported()
        link.send(Warm())
        warm = time.monotonic()
        launch, came = intake.launches.get()
        loop, ready = assemble(launch, link, intake, max(warm, came))
    except LoadError as error:
        print_trace(error)
        link.send(LoadFailed(str(error), error.setting))
        return EXIT_MEMORY if error.out_of_memory else EXIT_LOAD_FAILED
    except ImportError as error:
        print_trace(error)
        link.send(LoadFailed(f"{error.name or 'a module'} cannot be imported"))
        return EXIT_LOAD_FAILED
    link.send(ready)
    return loop


def _imported() -> Callable[..., tuple[Loop, Ready]]:
    """`assemble`, once all of mlx-lm is imported; that much stays, and is not searched for garbage:
    it would take a tenth of a start.
    """
    stand_in.install()
    gc.disable()
    from mlxd.worker.assembly import assemble

    gc.freeze()
    gc.enable()
    return assemble


if __name__ == "__main__":
    main()
