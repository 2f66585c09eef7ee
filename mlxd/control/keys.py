"""The API keys in force: looked up by requests, and read anew when their file changes.

What cannot be read changes nothing: the last good keys stay, and `warnings` say so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from mlxd.core.clock import Clock, within
from mlxd.core.counts import form
from mlxd.core.threads import Threads
from mlxd.policy.keyring import Key, Keyring
from mlxd.policy.keys_file import UNREAD, KeysFile, Reading, keys_file, lacking, read, stamp
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.store import Prepared

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
READ_SECONDS = 10.0
"""A file that does not come for this long, on a network say, counts as unreadable."""


class Keys:
    """Follows `clients.auth.keys_file`; an Applier. Reads it once while it is made, which blocks.

    Apart from its own threads, which only read, all of it is the event loop's.
    """

    def __init__(self, policies: PolicySet, state: Path, clock: Clock) -> None:
        self._state = state
        self._clock = clock
        self._threads = Threads("keys")
        self._readings = 0
        self._taken = 0
        """The number of the reading in force."""
        self._under_way: asyncio.Future[Reading] | None = None
        self._file = keys_file(policies, state)
        self._seen = read(self._file)
        self._ring = self._seen.ring or Keyring()

    def find(self, secret: str) -> Key | None:
        """Whose secret it is; None: nobody's."""
        return self._ring.find(secret, self._clock.wall())

    def over(self, secret: str) -> str:
        """`expired` or `revoked`, where it is the secret of such a key; else empty."""
        key = self._ring.known(secret)
        state = key.state(self._clock.wall()) if key is not None else ""
        return state if state != "valid" else ""

    @property
    def certain(self) -> bool:
        """Whether what is unknown is nobody's: the file can be read, and there are keys."""
        return self._seen.ring is not None and bool(self._ring.keys)

    @property
    def problem(self) -> str:
        """Why the file cannot be used; empty: it can."""
        return self._seen.problem

    @property
    def file(self) -> KeysFile:
        return self._file

    def valid(self) -> int:
        """How many there are."""
        return len(self._ring.valid(self._clock.wall()))

    def warnings(self, policies: PolicySet) -> list[str]:
        """For people."""
        found = []
        if self._seen.problem:
            found.append(f"API keys: {self._seen.problem}; the last good ones stay")
        if self._seen.shared:
            found.append(f"API keys: others may read or write {self._file.name}: chmod 600")
        if policies.keys_required and not self.valid():
            found.append(
                "API keys: none is valid, and clients need one: all of them get 401 until "
                "`mlxd keys add NAME`"
            )
        return found

    async def prepare(self, old: PolicySet, new: PolicySet) -> Prepared:
        """Raises PrepareFailed where keys are required from now on, or are in another file, and
        there is none. What was so before is in no other edit's way.
        """
        file = keys_file(new, self._state)
        try:
            number, found = await self._read(file)
        except OSError as error:  # TimeoutError, too
            number, found = self._readings, Reading(UNREAD, None, (f"{file.name}: {_why(error)}",))
        if not old.keys_required or file != self._file:
            failed = lacking(new, found, file.name, self._clock.wall())
            if failed is not None:
                raise failed
        before: list[tuple[KeysFile, Reading, Keyring]] = []

        def commit() -> None:
            before.append((self._file, self._seen, self._ring))
            moved, self._file = file != self._file, file
            if moved or number > self._taken:  # else a later reading is in force
                self._take(number, found, Keyring() if moved else self._ring)

        def undo() -> None:
            if before:
                self._file, self._seen, self._ring = before.pop()

        return _Prepared(commit, undo)

    async def follow(self) -> None:
        """Until cancelled. What is in the way is told once."""
        told = ""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                if await self._threads.run(stamp, self._file) != self._seen.stamp:
                    await self.reload()
                told = ""
            except OSError as error:  # TimeoutError, too
                if _why(error) != told:
                    log.warning("the API keys cannot be looked at: %s", _why(error))
                told = _why(error)

    async def reload(self) -> None:
        """Read the file now. Raises OSError: TimeoutError where the disk does not answer."""
        file = self._file
        number, found = await self._read(file)
        if file is self._file:  # else other policies have come meanwhile, with what they read
            self._take(number, found, self._ring)

    def _take(self, number: int, found: Reading, otherwise: Keyring) -> None:
        """What was read, and the keys that stay where it cannot be used."""
        self._taken = number
        before, self._seen, was = self._seen, found, self._ring
        self._ring = otherwise if found.ring is None else found.ring
        if found.problem and found.problem != before.problem:
            log.warning("API keys: %s; the last good ones stay", found.problem)
        elif self._ring != was:
            gone = "" if found.there else ", for its file is gone"
            valid = self.valid()
            log.info("API keys: %d %s valid now%s", valid, form(valid, "is", "are"), gone)

    async def _read(self, file: KeysFile) -> tuple[int, Reading]:
        """What it says from now on, and the reading's number: in a thread, one at a time, however
        long a disk hangs.
        """
        async with within(self._clock, READ_SECONDS):
            while self._under_way is not None and not self._under_way.done():
                await asyncio.shield(self._under_way)
            self._readings += 1
            number = self._readings
            self._under_way = self._threads.run(read, file)
            return number, await asyncio.shield(self._under_way)


def _why(error: OSError) -> str:
    return str(error) or "it does not answer"


class _Prepared:
    def __init__(self, commit: Callable[[], None], undo: Callable[[], None]) -> None:
        self.commit = commit
        self.undo = undo
