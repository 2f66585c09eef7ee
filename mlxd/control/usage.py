"""The day's use of tokens, in a file that outlives the daemon.

Nothing here ever fails for its caller: a file that cannot be read is set aside, and of one that
cannot be written /health says so. A daemon that is killed loses what was used in the last seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

import msgspec

from mlxd.control.quotas import DAY_S, MOST_ADDRESSES, Day, Quotas, Use
from mlxd.core import aside, durable
from mlxd.core.clock import Clock
from mlxd.core.threads import Threads
from mlxd.policy.policy_set import PolicySet

FILE = "usage.json"
SCHEMA = 1
MOST_TENANTS = 10_000
EVERY_S = 3.0
_MOST_BYTES = 16 * 2**20
_IMPOSSIBLE = 2**53
"""More tokens than anybody uses in a day."""
_PATIENCE_S = 2.0
_log = logging.getLogger(__name__)


class _File(msgspec.Struct, frozen=True):
    schema: int
    day: int
    tenants: Mapping[str, int]
    addresses: Mapping[str, int]


class _Version(msgspec.Struct, frozen=True):
    schema: int


class Usage:
    """The file of one state folder, and what it is of. Used on one event loop; written in a
    thread.
    """

    def __init__(self, state: Path, clock: Clock) -> None:
        """`clock` is the one that quotas are asked by."""
        self._path = state / FILE
        self._clock = clock
        self._threads = Threads("usage")
        self.quotas = Quotas(aside.read(self._path, SCHEMA, _decoded, most=_MOST_BYTES))
        self._kept = self.quotas.changes
        """Of its changes, how many the file has, is about to have, or could not be given."""
        self.failure = ""
        """Why the last write failed; empty: it did not."""
        self._writing: asyncio.Task[None] | None = None

    @property
    def today(self) -> int:
        """Days since the epoch."""
        return int(self._clock.wall() // DAY_S)

    def uses(self, policies: PolicySet) -> list[Use]:
        """What each tenant has used by now."""
        return self.quotas.uses(policies, self._clock.monotonic(), self._clock.wall())

    async def run(self) -> None:
        """Write every few seconds, where something has changed. Until it is cancelled."""
        while True:
            await asyncio.sleep(EVERY_S)
            self._save()

    async def close(self) -> None:
        """Write the last of it, but do not wait for a disk that hangs."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_S):
                await self.saved()

    async def saved(self) -> None:
        """Wait until what is known now is on the disk, or could not be written."""
        self._save()
        while self._writing is not None or self._kept != self.quotas.changes:
            self._save()
            if self._writing is not None:
                await asyncio.shield(self._writing)

    def _save(self) -> None:
        """One write at a time; what comes meanwhile goes into the next, and so does what could not
        be written.
        """
        if self._writing is None and (self.failure or self._kept != self.quotas.changes):
            self._writing = asyncio.get_running_loop().create_task(self._write())

    async def _write(self) -> None:
        try:
            day = self.quotas.day(self._clock.monotonic(), self._clock.wall())
            self._kept = self.quotas.changes
            content = msgspec.json.encode(_File(SCHEMA, day.number, day.tenants, day.addresses))
            try:
                await self._threads.run(durable.put, self._path, content)
                self.failure = ""
            except OSError as error:  # of the disk, or there is no thread for it
                if not self.failure:
                    _log.warning("%s cannot be written: %s", FILE, error.strerror or error)
                self.failure = (
                    f"the day's use of tokens cannot be written down: {error.strerror or error};"
                    " a restart would forget it"
                )
        finally:
            self._writing = None


def _decoded(content: bytes) -> Day:
    aside.check_version(msgspec.json.decode(content, type=_Version).schema, SCHEMA)
    said = msgspec.json.decode(content, type=_File)
    return Day(
        max(0, min(said.day, _IMPOSSIBLE)),
        _possible(said.tenants, MOST_TENANTS),
        _possible(said.addresses, MOST_ADDRESSES),
    )


def _possible(used: Mapping[str, int], most: int) -> dict[str, int]:
    """Without what nobody can have used."""
    believed = ((name, tokens) for name, tokens in used.items() if 0 <= tokens < _IMPOSSIBLE)
    return dict(islice(believed, most))
