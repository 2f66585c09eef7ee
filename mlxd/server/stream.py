"""One streamed answer: its status line, its records, and what is said while there is none.

The status line waits for the first event, or for `timeouts.first_byte`: until then a refusal has a
status of its own, also one of the queue; after that it is the last record of the stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import replace
from typing import Any

from aiohttp import web

from mlxd.control.dispatch import Asker
from mlxd.control.queue_view import Waiting
from mlxd.core.errors import MlxdError
from mlxd.core.events import Burst, Echo
from mlxd.core.threads import Threads
from mlxd.dialects.base import EVENT_STREAM, NDJSON, Call, Codec, Encoder, comment
from mlxd.policy.policy_set import PolicySet
from mlxd.server.edge import STORY, STREAM, common_headers
from mlxd.server.load_report import words_of as load_words_of
from mlxd.server.parts import Parts
from mlxd.server.queue_report import place_headers, words_of
from mlxd.server.quota import note_quota
from mlxd.server.told import Told

log = logging.getLogger(__name__)

_LEAST_WAIT = 1.0
"""Seconds that one who still waits is told of, unless it never was as long."""
TELL_SECONDS = 1.0
"""Between two words about a place in the queue."""
_PLACES_A_SECOND = 10
"""Who stands further back than this is told more rarely: each of many changes says little there."""
_PIECE = 65536
"""Bytes that are given to a client at a time."""
_TAKEN_AT_ONCE = 16384
"""Bytes that may wait for a client before a write does."""
_EVENTS = 64
"""Encoded at a time: a client that was slow may have many waiting."""
_MANY_SCORES = 4096
_threads = Threads("numbers")


class Stream:
    """Says what becomes of one call, as it becomes known; one that was cut before goes on with what
    its client is owed.
    """

    def __init__(
        self,
        parts: Parts,
        codec: Codec,
        told: Told,
        request: web.BaseRequest,
        policies: PolicySet,
        *,
        call: Call,
        encoder: Encoder,
    ) -> None:
        self._parts = parts
        self._codec = codec
        self._answer = told
        self._call = call
        self._request = request
        self._policies = policies
        self._encoder = encoder
        self._response = web.StreamResponse(
            headers={"Content-Type": codec.content_type, "Cache-Control": "no-cache"}
        )
        self._scored = any(one.echo and one.logprobs is not None for one in call.requests)
        """A burst may hold the scores of a whole prompt."""
        self._writing = asyncio.Lock()
        """Held for a whole write: nothing else gets into the middle of a record."""
        self._failure: Exception | None = None
        """What `_push` has met, for the reader."""
        self._torn = False
        """A record was begun and given up."""
        self._last_write = parts.clock.monotonic()
        self._waiting: Waiting | None = None
        """How it stands in the queue, or stood last; None: it has not waited there."""
        self._waiting_since = 0.0
        """When that was told."""
        self._told = 0
        """The position that was last said."""
        self._timer: asyncio.TimerHandle | None = None
        self._saying: asyncio.Task[None] | None = None

    async def run(self, asker: Asker) -> web.StreamResponse:
        self._request[STREAM] = self
        self._arm()
        try:
            await self._send_records(replace(asker, on_wait=self.wait, push=self._push))
        finally:
            self._disarm()
            self._tell_failure()
        self._answer.handed = True
        await self._response.write_eof()
        return self._response

    @property
    def begun(self) -> bool:
        """The status line is out: a failure can only be said in the stream."""
        return self._response.prepared

    def wait(self, waiting: Waiting) -> None:
        """It waits in the queue, and stands like this from now on."""
        self._waiting = waiting
        self._waiting_since = self._parts.clock.monotonic()
        if self._answer.owed and not self._speaking:
            self._saying = asyncio.create_task(self._begin(), name=f"owed {self._call.id}")

    @property
    def _place(self) -> Waiting | None:
        """In the queue, while it waits there: what of the wait is over is none of it any more."""
        if self._waiting is None or self._request[STORY].admitted is not None:
            return None
        expected = self._waiting.expected_wait
        left = expected - (self._parts.clock.monotonic() - self._waiting_since)
        return replace(self._waiting, expected_wait=max(left, min(expected, _LEAST_WAIT)))

    async def fail(self, error: MlxdError) -> web.StreamResponse:
        """Say in the stream that it ends here, and why.

        Raises ConnectionResetError where that would be read as the rest of a record.
        """
        await self._write(self._encoder.fail(error))
        await self._response.write_eof()
        return self._response

    async def _send_records(self, asker: Asker) -> None:
        dispatcher, headway = self._parts.dispatcher, self._answer.headway
        if self._answer.complete:
            await self._write(b"")
        elif self._call.more:
            async with dispatcher.open_all(self._call.requests, asker, headway) as numbered:
                await self._catch_up()
                async for choice, burst in numbered:
                    await self._send(burst, choice)
        else:
            async with dispatcher.open(self._call.request, asker, headway) as bursts:
                await self._catch_up()
                async for burst in bursts:
                    await self._send(burst, 0)

    async def _begin(self) -> None:
        """While it waits, with what it is owed: whoever waits learns that its client has left."""
        with contextlib.suppress(ConnectionError):
            await self._catch_up()

    async def _catch_up(self) -> None:
        """What it is owed goes out."""
        if self._answer.owed:
            await self._write(b"")

    def _push(self, burst: Burst) -> bool:
        """A burst that is no trouble goes out while its reader sleeps on: no task runs for it.

        Whatever goes wrong once it is told is raised by the next one's `_send`.
        """
        wire = self._request.transport
        if self._failure or not self._flows(0) or wire is None or wire.is_closing():
            return False
        told = False
        try:
            records = self._answer.tell(self._encoder.feed(burst, self._parts.clock.wall(), 0))
            told = True
            if records:
                for chunk in self._chunks(records):
                    self._write_at_once(chunk)
        except ConnectionError:
            wire.abort()  # what was told is owed to whoever comes back
        except Exception as error:  # noqa: BLE001 - its reader gets it; the worker's others do not
            self._failure, self._answer.uncertain = error, True
        return told

    def _chunks(self, records: bytes) -> list[bytes]:
        """A line of NDJSON has a chunk of its own, as Ollama writes it: there are clients that take
        one chunk for one object, such as those on `iter_content(None)` of requests.
        """
        if self._codec.content_type != NDJSON:
            return [records]
        return records.splitlines(keepends=True)

    def _write_at_once(self, chunk: bytes) -> None:
        """Without a wait for room, which nobody may begin and leave: whoever waits next could not.

        Raises ConnectionResetError once the client has left.
        """
        writer: Any = self._request.writer
        writing = writer.write(chunk, drain=False)
        try:
            writing.send(None)
        except StopIteration:
            self._last_write = self._parts.clock.monotonic()
        else:
            writing.close()
            raise RuntimeError("a write waits that should not")

    async def _send(self, burst: Burst, choice: int) -> None:
        if self._failure is not None:
            try:
                raise self._failure
            finally:
                self._failure = None  # or it would hold itself by its traceback
        if len(burst) > _EVENTS or self._scored:
            await self._send_in_parts(burst, choice)
        else:
            records = self._encoder.feed(burst, self._parts.clock.wall(), choice)
            if records := self._answer.tell(records):
                await self._write(records)

    async def _send_in_parts(self, burst: Burst, choice: int) -> None:
        for at in range(0, len(burst), _EVENTS):
            records = self._answer.tell(await self._encoded(burst[at : at + _EVENTS], choice))
            if not records:
                continue
            try:
                await self._write(records)
            except BaseException:
                self._answer.give_back(choice, burst[at + _EVENTS :])
                raise

    async def _encoded(self, events: Burst, choice: int) -> bytes:
        now = self._parts.clock.wall()
        if not _many_scores(events):
            return self._encoder.feed(events, now, choice)
        self._answer.uncertain = True
        records = await _threads.run_or_here(self._encoder.feed, events, now, choice)
        self._answer.uncertain = False
        return records

    async def _write(self, records: bytes) -> None:
        """Raises ConnectionResetError once the client has left."""
        if records and self._flows(len(records)):
            await self._write_whole(records)
            self._last_write = self._parts.clock.monotonic()
            return
        async with self._writing:
            await self._write_now(records)

    def _flows(self, size: int) -> bool:
        """So much more is taken at once, and nothing has to come before it."""
        if self._answer.owed or self._torn or not self._response.prepared or self._writing.locked():
            return False
        wire = self._request.transport
        return wire is not None and wire.get_write_buffer_size() + size <= _TAKEN_AT_ONCE

    async def _write_now(self, records: bytes) -> None:
        if not self._response.prepared:
            await self._prepare()
        self._last_write = self._parts.clock.monotonic()
        transport = self._request.transport
        if transport is None:
            raise ConnectionResetError("the client has left")
        if self._torn:
            transport.abort()
            raise ConnectionResetError("the last record has no end")
        owed = self._answer.owed  # its client may come back by another connection meanwhile
        while owed:
            await self._write_to(transport, owed.take())
            await asyncio.sleep(0)  # there may be much, and others are to have their turn
        if records:
            await self._write_to(transport, records)

    async def _write_to(self, transport: asyncio.WriteTransport, records: bytes) -> None:
        if transport.get_write_buffer_size() + len(records) <= _TAKEN_AT_ONCE:
            await self._write_whole(records)
        else:
            await self._write_slowly(records)
        self._last_write = self._parts.clock.monotonic()

    async def _write_whole(self, records: bytes) -> None:
        """All is with the transport before any of it waits for room."""
        *before, last = self._chunks(records)
        for chunk in before:
            self._write_at_once(chunk)
        await self._response.write(last)

    async def _write_slowly(self, records: bytes) -> None:
        """What waits for the client stays small. One that takes nothing is cut by the server's
        sweep (`timeouts.client_write`): however slow it is, it may go on taking.
        """
        *before, last = self._pieces(records)
        for piece in before:
            self._torn = True
            await self._response.write(piece)
        self._torn = False
        await self._response.write(last)

    def _pieces(self, records: bytes) -> list[bytes]:
        """A line of NDJSON is in one piece, however long it is: it is a chunk."""
        if self._codec.content_type == NDJSON:
            return self._chunks(records)
        return [records[at : at + _PIECE] for at in range(0, len(records), _PIECE)]

    async def _prepare(self) -> None:
        note_quota(self._request, self._parts, self._policies)
        headers = self._response.headers
        headers.update(common_headers(self._request))
        if (place := self._place) is not None:
            headers.update(place_headers(place))
        await self._response.prepare(self._request)

    def _arm(self) -> None:
        """A timer and no task: many may wait for long."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._pause(), self._look)

    def _disarm(self) -> None:
        """A word that is being written is left to its end: whoever waited for room behind a wait
        that was cancelled would be cancelled, too.
        """
        if self._timer is not None:
            self._timer.cancel()
        if self._saying is not None and not self._writing.locked():
            self._saying.cancel()

    def _tell_failure(self) -> None:
        """What no later burst has raised: none came."""
        failure, self._failure = self._failure, None
        if failure is not None:
            log.error("a piece of %s was lost: a defect of mlxd", self._call.id, exc_info=failure)

    def _silence(self) -> float:
        return self._parts.clock.monotonic() - self._last_write

    def _pause(self) -> float:
        """Until there may be something to say."""
        due = float(self._policies.timeouts.first_byte)
        if not self._speaking:
            due -= self._silence()
        place = self._place
        if place is not None and self._tells_place and (self._speaking or self._response.prepared):
            due = min(due, max(TELL_SECONDS, place.position / _PLACES_A_SECOND))
        return max(0.001, due)

    @property
    def _tells_place(self) -> bool:
        return self._place is not None and self._codec.content_type == EVENT_STREAM

    def _look(self) -> None:
        if not self._speaking and self._due() is not None:
            self._saying = asyncio.create_task(self._say(), name=f"beat {self._call.id}")
        self._arm()

    @property
    def _speaking(self) -> bool:
        return self._saying is not None and not self._saying.done()

    def _due(self) -> bytes | None:
        """What to say now, which may be the status line alone; None: nothing."""
        silent = self._silence() >= float(self._policies.timeouts.first_byte)
        if not silent and not self._response.prepared:
            return None
        place = self._place
        if place is not None and self._tells_place:
            return comment(words_of(place)) if silent or place.position != self._told else None
        return self._beat() if silent else None

    def _beat(self) -> bytes:
        """A sign of life; while its model is loaded, how far that is."""
        story = self._request[STORY]
        if self._codec.content_type == EVENT_STREAM and story.leased is None:
            progress = self._parts.residency.progress_of(story.model)
            if progress is not None:
                return comment(load_words_of(progress))
        return self._codec.heartbeat

    async def _say(self) -> None:
        with contextlib.suppress(ConnectionError):
            async with self._writing:
                words = self._due()  # a record may have gone before
                if words is not None:
                    words = self._harmless(words)
                    self._told = place.position if (place := self._place) is not None else 0
                    await self._write_now(words)

    def _harmless(self, words: bytes) -> bytes:
        """A comment takes no blank line behind an event with an id: a client that keeps the id, as
        it should, may take that for an event without data. OpenAI's does, and fails.
        """
        behind_id = self._answer.count > 0  # be it on an earlier connection: it may be told again
        return words[:-1] if behind_id and words.startswith(b":") else words


def _many_scores(events: Burst) -> bool:
    """Whether to write them down would take the loop long."""
    return any(isinstance(event, Echo) and len(event.logprobs) > _MANY_SCORES for event in events)
