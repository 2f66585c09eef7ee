"""One answer as its client was told it, and what it takes to go on with it on another connection.

Each record of a stream of server-sent events ends with a line `id: CALL-N`, but where policy has
none for a client that asks for none; N counts records: the last one that a client saw says exactly
what it has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mlxd.control.headway import Headway
from mlxd.core.events import Burst, Fold
from mlxd.dialects.base import Call, Encoder
from mlxd.server.told_records import Owed, ToldRecords

Grown = Callable[[int], None]

_OVERHEAD = 2048
"""Bytes that one takes beside what it says."""
_PARSED = 4
"""A request takes so many times the bytes of its body, about."""


class Told:
    """An answer that is being told, was cut, or has ended.

    It keeps what it tells where `grown` is told how many bytes that takes more.
    """

    __slots__ = (
        "_base", "_grown", "_mark", "_records", "_under_way", "_written",
        "call", "client", "complete", "connection", "count", "digest", "drawn", "encoder", "first",
        "folds", "gone", "handed", "has_ids", "headway", "id", "kept_at", "owed", "owner", "tokens",
        "uncertain",
    )  # fmt: skip

    def __init__(
        self,
        call: Call,
        encoder: Encoder | None,
        *,
        ids: bool = False,
        owner: str = "",
        digest: bytes = b"",
        body: int = 0,
        client: str = "",
        grown: Grown | None = None,
    ) -> None:
        """`encoder`: None for an answer that is told whole. `ids`: its records are server-sent
        events, and get some. `body`: the size of the request's. `client`: whose share it takes.
        """
        self.id = call.id
        self.call: Call | None = call
        """None once it is complete, as is `encoder`."""
        self.encoder = encoder
        self.owner = owner
        self.client = client
        self.digest = digest
        """Of path and body: the same request again has the same."""
        self.headway = Headway()
        self.folds = [Fold() for _ in call.requests] if encoder is None else []
        self.count = 0
        """Records that there were."""
        self.owed = Owed()
        """Records to be told again before any other."""
        self.complete = False
        """All of it was told, whether it has arrived or not."""
        self.handed = False
        """All of it was handed to its connection."""
        self.drawn = False
        """Once it is settled: the same request anew would be told something else."""
        self.tokens = 0
        """Once it is settled: that its generations had."""
        self.uncertain = False
        """Its encoder is in the middle of something: what is interrupted there cannot go on."""
        self.first = ""
        """The id of the HTTP request that began it."""
        self.connection: asyncio.Transport | None = None
        """That it is being told on."""
        self.gone: asyncio.Event | None = None
        """Set once it is not being told any more; None: nobody waits for that."""
        self.kept_at = 0.0
        """When it was cut, or ended; on the monotonic clock."""
        self._base = _OVERHEAD + _PARSED * body
        self._under_way = True
        self._written = 0
        self._mark = _mark_of(call.id)
        self.has_ids = ids
        """Each of its records has one."""
        self._records = ToldRecords(self._mark)
        """What was told."""
        self._grown = grown

    @property
    def keeps(self) -> bool:
        """Somebody may come back to it."""
        return self._grown is not None

    @property
    def size(self) -> int:
        """Bytes that it takes, about: while it is told, more than it would take anyway."""
        return self._written if self._under_way else self._base + self._written

    def tell(self, records: bytes) -> bytes:
        """The same, each with its id: what its client is told from now on, whether it gets it or
        not.
        """
        if not records or self._grown is None:
            return records
        if self.has_ids:
            end = len(records) - 2
            if records.find(b"\n") == end or records.find(b"\n\n") == end:
                self.count += 1
                records = b"%b%b%d\n\n" % (records[:-1], self._mark, self.count)
            else:
                records = self._with_ids(records)
        if more := self._records.add(records, self.count):
            self._written += more
            self._grown(more)
        return records

    def forget(self) -> None:
        """Nobody can come back to it any more."""
        self._grown = None
        self._records.clear()

    def behind(self, number: int) -> Owed | None:
        """The records behind that one, 0: all; None: there is no such one. While it is not told."""
        return self._records.behind(number)

    def rename(self, id: str) -> None:
        """Its events have other ids from now on: who knows the old ones cannot come back to it.
        While it is not told.
        """
        self.id, self._mark = id, _mark_of(id)
        if self.has_ids:
            self._records.rename(self._mark)

    def give_back(self, choice: int, burst: Burst) -> None:
        """What was taken of a generation, and was not told."""
        if burst:
            self.headway.give_back(choice, burst)

    def begin(self, connection: asyncio.Transport | None) -> None:
        """It is told on this connection."""
        self.connection, self._under_way, self.handed = connection, True, False
        self._written = self._records.size

    def settle(self) -> None:
        """It is not being told any more: of one that is complete, no more stays than was told."""
        self._records.close()
        self.connection, self.owed, self._under_way = None, Owed(), False
        kept = self._records.size
        self._written = kept + self.headway.size + sum(f.size for f in self.folds)
        if self.headway.transcripts:
            self.drawn, self.tokens = self.headway.drawn, self.headway.tokens
        if self.complete and self.encoder is not None:
            self._base, self._written = _OVERHEAD, kept
            self.call, self.encoder, self.headway = None, None, Headway()

    def hang_up(self) -> None:
        """End the connection that it is told on, as if its client had."""
        if self.connection is not None:
            self.connection.abort()

    def _with_ids(self, records: bytes) -> bytes:
        told: list[bytes] = []
        for record in records[:-2].split(b"\n\n"):
            self.count += 1
            told.append(b"%b\n%b%d\n\n" % (record, self._mark, self.count))
        return b"".join(told)


def _mark_of(id: str) -> bytes:
    """What a record ends with, but for its number."""
    return f"id: {id}-".encode()
