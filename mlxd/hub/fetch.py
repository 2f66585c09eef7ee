"""One file over HTTP, continued where an earlier attempt left it.

The library's own download starts anew in each process. For what takes hours, ranges are asked for
here, over the library's connections.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import BinaryIO

import httpx2
from huggingface_hub import hf_hub_url

from mlxd.hub.failure import PullFailure
from mlxd.hub.listing import Remote
from mlxd.hub.patience import Faltered, Patience, may_pass, wait_of
from mlxd.hub.session import Hub, answer

Tell = Callable[[int], None]
"""Told how many bytes of the file are here."""


class Stopped(Exception):
    """Another file has failed: this one need not go on."""


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Fetches files of one commit; from any thread."""

    hub: Hub
    repo: str
    revision: str
    patience: Patience
    stop: Event

    def fetch(self, file: Remote, target: Path, tell: Tell) -> int:
        """Bring `target` to its size; returns the bytes that came.

        Whether they are the right ones is not seen here. Raises PullFailure, Stopped, OSError.
        """
        failures = came = 0
        with target.open("ab") as stream:
            if stream.tell() > file.size:
                _empty(stream)
            while (before := stream.tell()) < file.size:
                tell(before)
                try:
                    self._continue(file, stream, tell)
                except (httpx2.TransportError, Faltered) as error:
                    failures = 1 if stream.tell() > before else failures + 1
                    self.patience.bear(failures, error)
                finally:
                    came += max(0, stream.tell() - before)
            tell(file.size)
            stream.flush()
            os.fsync(stream.fileno())
        return came

    def _continue(self, file: Remote, stream: BinaryIO, tell: Tell) -> None:
        """Ask for what is missing, and append it. Raises what `fetch` raises, and Faltered."""
        have = stream.tell()
        url = hf_hub_url(
            self.repo, file.name, revision=self.revision, endpoint=self.hub.endpoint
        )  # fmt: skip
        part = {"Range": f"bytes={have}-"} if have else {}
        with answer(self.hub, url, **part) as response:
            if not _goes_on(response, have, file):
                _empty(stream)
                if response.status_code == 416:
                    raise Faltered("it does not have the part that is missing")
            self._append(response, file, stream, tell)
        if stream.tell() < file.size:
            raise Faltered("it ends its answers early")

    def _append(
        self, response: httpx2.Response, file: Remote, stream: BinaryIO, tell: Tell
    ) -> None:
        have = stream.tell()
        for chunk in response.iter_raw():
            if self.stop.is_set():
                raise Stopped
            have += len(chunk)
            if have > file.size:
                raise PullFailure("corrupt", f"the hub sends more of {file.name} than it said")
            stream.write(chunk)
            tell(have)


def _empty(stream: BinaryIO) -> None:
    stream.truncate(0)
    stream.seek(0)


def _goes_on(response: httpx2.Response, have: int, file: Remote) -> bool:
    """Whether the answer continues at `have`; else it is no part of what is here.

    Raises PullFailure, Faltered.
    """
    status = response.status_code
    if status in (200, 416):
        return status == 200 and have == 0
    if may_pass(status):
        raise Faltered(f"it answers {status}", wait_of(response))
    if status in (401, 403):
        raise PullFailure("denied", f"the hub does not give us {file.name}: is HF_TOKEN set?")
    if status != 206:
        raise PullFailure("refused", f"the hub answered {status} to a request for {file.name}")
    start = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    if start != str(have):
        raise PullFailure("refused", f"the hub sends another part of {file.name} than asked")
    return True
