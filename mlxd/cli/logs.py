"""`mlxd logs`: where the daemon's log is, and its last lines; or those of a worker."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import BinaryIO

from mlxd.cli import exits
from mlxd.cli.admin import AdminClient
from mlxd.cli.client import NoAnswer, health_of, silence
from mlxd.cli.models.asking import asking, failed, print_lines
from mlxd.core import places
from mlxd.core.lines import one_line

_LOOK_SECONDS = 0.5
_BLOCK = 1 << 16
_ELSEWHERE = (
    "the log goes to stderr, and is kept by whoever has started the daemon: journalctl -u mlxd"
    " (systemd), the terminal; server.log.file names a file of its own"
)
_UNTOLD = (
    "where the log is, mlxd tells on the admin socket, its own user and root; what answered here"
    " has none in the state folder {state}"
)


def logs(
    policies: str | None, state: str | None, count: int, *, path_only: bool, follow: bool
) -> int:
    """Its last `count` lines. Raises nothing."""
    found = places.find(policies, state)
    try:
        place = str(health_of(found).get("log", ""))
    except NoAnswer as error:
        print(one_line(silence(found, error)[1]), file=sys.stderr)
        return exits.FAILED
    if not place or place == "stderr":
        words = _ELSEWHERE if place else _UNTOLD.format(state=found.state.path)
        print(one_line(words), file=sys.stderr)
        return exits.FAILED
    if path_only:
        print(place)
        return exits.DONE
    try:
        lines, end = _last(Path(place), count)
        for line in lines:
            print(one_line(line))
        for line in _next(Path(place), end) if follow else ():
            print(one_line(line), flush=True)
    except OSError as error:
        print(one_line(f"mlxd: {place}: {error.strerror or error}"), file=sys.stderr)
        return exits.FAILED
    return exits.DONE


def of_worker(policies: str | None, state: str | None, model: str, count: int) -> int:
    """The last `count` lines that the worker of a model has written to stderr."""

    def ask(daemon: AdminClient) -> int:
        said = daemon.get("/admin/models/stderr", name=model)
        if said["pid"] is None:
            words = f"{said['model']} has no worker now; what the last one said: mlxd crashes"
            return failed(words, as_json=False)
        print_lines(said["lines"][-count:])
        return exits.DONE

    return asking(policies, state, ask, as_json=False)


def _last(file: Path, count: int) -> tuple[list[str], int]:
    """The last whole lines, and where they end. Read from the end: a log may be large."""
    with file.open("rb") as stream:
        left = end = stream.seek(0, os.SEEK_END)
        tail = b""
        while left and tail.count(b"\n") <= count:
            size = min(_BLOCK, left)
            left -= size
            stream.seek(left)
            tail = stream.read(size) + tail
    whole, _, begun = tail.rpartition(b"\n")
    return whole.decode("utf-8", "replace").splitlines()[-count:], end - len(begun)


def _next(file: Path, begin: int) -> Generator[str, None, None]:
    """Each line as it comes, from `begin` on; also of the file that takes the place of a finished
    one.
    """
    while True:
        with file.open("rb") as stream:
            stream.seek(begin)
            yield from _until_replaced(file, stream)
        begin = 0


def _until_replaced(file: Path, stream: BinaryIO) -> Iterator[str]:
    """What was written before another file took the place is read to its end."""
    while True:
        here = _same(file, stream.fileno())
        if os.fstat(stream.fileno()).st_size < stream.tell():
            stream.seek(0)  # it was copied, and begins anew
        yield from _whole_lines(stream)
        if not here:
            if rest := stream.read():
                yield rest.decode("utf-8", "replace")
            return
        time.sleep(_LOOK_SECONDS)


def _whole_lines(stream: BinaryIO) -> Iterator[str]:
    """One that is half written is left for later."""
    while (line := stream.readline()).endswith(b"\n"):
        yield line.decode("utf-8", "replace").rstrip("\n")
    stream.seek(-len(line), os.SEEK_CUR)


def _same(file: Path, descriptor: int) -> bool:
    """A file that is not there for a moment is waited for."""
    try:
        return os.path.samestat(file.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return True
