"""`python -m mlxd.hub REPO --into DIR [--endpoint URL] [--code] [--wait S]`: pull, tell of it, end.

Exit status 0: it is there; 1: it failed, and the last line says why. It ends with its stdin too:
with the daemon, however that ends.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mlxd.core import traces

if TYPE_CHECKING:
    from mlxd.hub.telling import Telling

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
    traces.install()
    arguments = _parser().parse_args()
    threading.Thread(target=_end_with_stdin, name="stdin", daemon=True).start()
    os.environ.update(ENVIRONMENT)
    from mlxd.hub.patience import Patience
    from mlxd.hub.pull import Pull
    from mlxd.hub.session import open_hub
    from mlxd.hub.telling import Telling

    telling = Telling()
    patience = Patience(first=arguments.wait)

    def pull() -> None:
        hub = open_hub(arguments.endpoint)
        Pull(hub, arguments.repo, telling, patience, arguments.code).run(arguments.into)

    return ended(pull, telling)


def ended(pull: Callable[[], None], telling: Telling) -> int:
    """Its exit status; whatever ends it is told. An exception's own words may hold an address:
    stderr has only its kind and where it arose.
    """
    from mlxd.hub.failure import PullFailure
    from mlxd.ipc.pulling import Failed

    try:
        pull()
    except PullFailure as failure:
        telling.tell(Failed(failure.kind, failure.message))
        return 1
    except Exception as error:  # noqa: BLE001 - the edge: whoever waits is answered
        sys.stderr.write(f"{traces.words_of(error)} in {traces.place_of(error)}\n")
        sys.stderr.flush()
        telling.tell(Failed("refused", "the hub answers what cannot be understood"))
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mlxd.hub", description="Pull one model.")
    parser.add_argument("repo", metavar="ORGANISATION/NAME")
    parser.add_argument("--into", type=Path, required=True, help="the folder of pulled models")
    parser.add_argument("--endpoint", default="", help="of the hub; the library's own")
    parser.add_argument("--code", action="store_true", help="with the Python files in it")
    parser.add_argument("--wait", type=float, default=0.5, help="before the first try again, in s")
    return parser


def _end_with_stdin() -> None:
    """At once: what is on the disk is right for the next attempt at any moment."""
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
