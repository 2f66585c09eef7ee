"""`python -m mlxd.hub REPO --into DIR [--endpoint URL] [--code]`: pull, tell of it, end.

Exit status 0: it is there; 1: it failed, and the last line says why. It ends with its stdin too:
with the daemon, however that ends.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
from pathlib import Path

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "0",
    "TRANSFORMERS_OFFLINE": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "critical",
    "HF_DEBUG": "0",
}
"""For the library, which reads it when it is imported. Its messages would show addresses."""


def main() -> int:
    arguments = _parser().parse_args()
    threading.Thread(target=_end_with_stdin, name="stdin", daemon=True).start()
    os.environ.update(ENVIRONMENT)
    from mlxd.hub.failure import PullFailure
    from mlxd.hub.patience import Patience
    from mlxd.hub.pull import Pull
    from mlxd.hub.session import open_hub
    from mlxd.hub.telling import Telling
    from mlxd.ipc.pulling import Failed

    telling = Telling()
    try:
        hub = open_hub(arguments.endpoint)
        Pull(hub, arguments.repo, telling, Patience(), arguments.code).run(arguments.into)
    except PullFailure as failure:
        telling.tell(Failed(failure.kind, failure.message))
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mlxd.hub", description="Pull one model.")
    parser.add_argument("repo", metavar="ORGANISATION/NAME")
    parser.add_argument("--into", type=Path, required=True, help="the folder of pulled models")
    parser.add_argument("--endpoint", default="", help="of the hub; the library's own")
    parser.add_argument("--code", action="store_true", help="with the Python files in it")
    return parser


def _end_with_stdin() -> None:
    """At once: what is on the disk is right for the next attempt at any moment."""
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
