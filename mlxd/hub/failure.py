"""Why a pull fails, in words for whoever asked; never with a token or a signed address in them."""

from __future__ import annotations

from mlxd.ipc.pulling import Failure


class PullFailure(Exception):
    """It ends here. What was fetched stays for the next attempt, unless it is what is wrong."""

    def __init__(self, kind: Failure, message: str) -> None:
        super().__init__(message)
        self.kind: Failure = kind
        self.message = message
