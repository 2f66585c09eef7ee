"""`python -m mlxd.worker --fd N --model FOLDER --context TOKENS`: one model over one socket."""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from mlxd.ipc.messages import LoadFailed
from mlxd.worker.intake import Intake
from mlxd.worker.link import Link
from mlxd.worker.refusal import LoadError
from mlxd.worker.threads import EXIT_BROKEN

if TYPE_CHECKING:
    from mlxd.worker.loop import Loop

EXIT_LOAD_FAILED = 1


def main() -> int:
    """The exit status: 0 after `Shutdown`, 1 when the model does not load, 70 after a defect."""
    arguments = _arguments()
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    loop = _start(arguments)
    if loop is None:
        return EXIT_LOAD_FAILED
    try:
        loop.run()
    except Exception:  # noqa: BLE001 - the engine's state is unknown now; the daemon replaces us
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(EXIT_BROKEN)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m mlxd.worker")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--context", type=int, required=True)
    return parser.parse_args()


def _start(arguments: argparse.Namespace) -> Loop | None:
    """The IO thread first: the daemon may go away while imports and weights load."""
    began = time.monotonic()
    link = Link(socket.socket(fileno=arguments.fd))
    intake = Intake(link)
    intake.start()
    try:
        from mlxd.worker.assembly import assemble

        loop, ready = assemble(arguments.model, arguments.context, link, intake, began)
    except LoadError as error:
        traceback.print_exc()
        link.send(LoadFailed(str(error)))
        return None
    except ImportError as error:
        traceback.print_exc()
        link.send(LoadFailed(f"{error.name or 'a module'} cannot be imported"))
        return None
    link.send(ready)
    return loop


if __name__ == "__main__":
    sys.exit(main())
