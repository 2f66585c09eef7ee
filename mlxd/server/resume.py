"""Answers that were cut, or whose end may not have arrived: kept for their clients to come back to.

A client comes back by `Last-Event-ID`, or by asking the same again. In memory alone, bounded by
`server.resume`; nobody but the client that asked for it is told anything of an answer, and for want
of room whoever takes the most loses the first one.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter, OrderedDict, deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from mlxd.core.clock import Clock
from mlxd.core.counts import whole
from mlxd.core.errors import MlxdError, ResumeExpired
from mlxd.core.story import Story
from mlxd.dialects.base import EVENT_STREAM, Call, Codec
from mlxd.policy.policy_set import PolicySet
from mlxd.server.told import Told
from mlxd.server.told_records import Owed

HEADER = "Last-Event-ID"
_MOST_DIGITS = 9
_Became = Literal["ended", "cut", "refused", "failed"]
"""Refused: it was to go on, and may be asked for again."""
_KEPT = ("cut", "refused")


@dataclass(frozen=True, slots=True)
class Coming:
    """A request, as far as it may come back to an answer."""

    owner: str
    """Whose it is."""
    digest: bytes
    """Of its path and body: the same request again has the same."""
    size: int
    """Of its body, in bytes."""
    event: str
    """Its `Last-Event-ID`."""
    reads_ids: bool
    """Its events may have ids (`server.resume.ids`)."""
    retried: bool
    """Its client says that it has tried before."""
    policies: PolicySet
    story: Story

    @property
    def client(self) -> str:
        """Whose share it takes: one client may be several owners."""
        return self.story.caller.name

    @property
    def twins(self) -> _Twins:
        return self.owner, self.digest


_Twins = tuple[str, bytes]


class Resumption:
    """Finds what a request goes on with. For the event loop's thread."""

    def __init__(self, clock: Clock, policies: PolicySet) -> None:
        self._clock = clock
        self._bounds = policies.server.resume
        self._live: dict[str, Told] = {}
        """Those that are being told, by their call's id, the oldest first."""
        self._cut: OrderedDict[str, Told] = OrderedDict()
        self._ended: OrderedDict[str, Told] = OrderedDict()
        """The oldest first."""
        self._twins: dict[_Twins, list[Told]] = {}
        """Those of `_cut` that may be gone on with where the same is asked again."""
        self._bytes = 0
        self._taken: Counter[str] = Counter()
        """Of them, by client; whoever takes nothing is not there."""
        self._timer: asyncio.TimerHandle | None = None
        self.outcomes: Counter[str] = Counter()
        """How often somebody came back, by what came of it."""

    def __len__(self) -> int:
        """Those that somebody may come back to, and that are not being told."""
        return len(self._cut) + len(self._ended)

    @property
    def size(self) -> int:
        """That all take, those included that are being told."""
        return self._bytes

    def apply(self, policies: PolicySet) -> None:
        """Other bounds hold at once."""
        self._bounds = policies.server.resume
        if not self._bounds.window:
            for told in list(self._live.values()):
                self._forget(told)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._sweep()

    # -- finding

    async def answer_to(self, coming: Coming, call: Call, codec: Codec) -> Told:
        """What a request is told: what it comes back to, or else an answer that begins now.

        Raises ResumeExpired for a `Last-Event-ID` behind which nothing is kept.
        """
        streams = call.request.stream
        events = streams and codec.content_type == EVENT_STREAM
        if events and coming.event:
            return await self._behind(coming, call)
        if (twin := self._twin(coming, ids=events and coming.reads_ids)) is not None:
            self._remove(twin)
            twin.rename(call.id)
            return self._found(twin, twin.behind(0), "attached", coming, call)
        keeps = self._bounds.window and call.request.want == "answer"
        told = Told(
            call,
            codec.encoder(call) if streams else None,
            ids=events and coming.reads_ids,
            owner=coming.owner,
            digest=coming.digest,
            body=coming.size,
            client=coming.client,
            grown=partial(self._grown, coming.client) if keeps else None,
        )
        told.first = coming.story.id
        return told

    async def _behind(self, coming: Coming, call: Call) -> Told:
        id, _, digits = coming.event.rpartition("-")
        how = "resumed"
        while (live := self._live.get(id)) is not None and _of(live, coming):
            live.gone = live.gone or asyncio.Event()
            live.hang_up()  # its client is here: whoever that was told to is nobody
            await live.gone.wait()
            how = "taken_over"
        self._sweep()
        told, number = self._cut.get(id) or self._ended.get(id), whole(digits, _MOST_DIGITS)
        owed = None
        if told is not None and number is not None and _of(told, coming):
            owed = told.behind(number)
        if told is None or owed is None:
            self.outcomes["expired"] += 1
            raise _expired(coming.policies)
        self._remove(told)
        return self._found(told, owed, how, coming, call)

    def _twin(self, coming: Coming, *, ids: bool) -> Told | None:
        """One that was cut, and goes on as this request would be answered. Who asks anew, and is to
        be told something else, has given up what was cut: no retry goes on with it either.
        """
        if self._bounds.attach == "off" or coming.twins not in self._twins:
            return None
        self._sweep()
        twins = self._twins.get(coming.twins, [])
        if not coming.retried and self._bounds.attach != "always":
            for told in [one for one in twins if one.drawn]:
                self._part(told)
        return next((told for told in twins if told.has_ids == ids), None)

    def _found(self, told: Told, owed: Owed | None, how: str, coming: Coming, call: Call) -> Told:
        told.owed = owed or Owed()
        told.call = told.call or replace(call, id=told.id)
        self.outcomes[how] += 1
        coming.story.note("resumed", how=how, first=told.first, tokens=told.tokens)
        return told

    # -- keeping

    @contextmanager
    def telling(
        self, told: Told, story: Story, connection: asyncio.Transport | None
    ) -> Iterator[None]:
        """While it is told. How the block ends says whether somebody may come back to it."""
        before = told.headway.tokens, told.count
        resumed = told.complete or bool(told.headway.transcripts)
        told.begin(connection)
        if told.keeps:
            self._live[told.id] = told
            self._grown(told.client, told.size)
        became: _Became = "failed"
        try:
            yield
            became = "ended"
        except (asyncio.CancelledError, ConnectionError):
            became = "cut"
            raise
        except ResumeExpired:
            raise
        except MlxdError:
            if resumed and (told.headway.tokens, told.count) == before:
                became = "refused"
            raise
        finally:
            if told.keeps:
                self._let_go(told, became, story)
            if told.gone is not None:
                told.gone.set()
                told.gone = None

    def _let_go(self, told: Told, became: _Became, story: Story) -> None:
        """It is not being told any more; one that was handed over has ended, however that went."""
        self._count(told.client, -told.size)
        del self._live[told.id]
        told.complete = told.complete or told.headway.over
        told.settle()
        told.kept_at = self._clock.monotonic()
        if told.complete and told.handed and told.count:
            self._ended[told.id] = told
        elif became in _KEPT and not told.uncertain and (told.tokens or told.count):
            self._cut[told.id] = told
            self._twins.setdefault((told.owner, told.digest), []).append(told)
            if became == "cut":
                story.note("kept", tokens=told.tokens, records=told.count)
        else:
            return
        self._count(told.client, told.size)
        self._sweep()

    def _remove(self, told: Told) -> None:
        """It is none of those any more that wait for somebody."""
        self._count(told.client, -told.size)
        if self._ended.pop(told.id, None) is None:
            del self._cut[told.id]
            self._part(told)

    def _part(self, told: Told) -> None:
        """It is no twin of a request any more."""
        twins = self._twins.get((told.owner, told.digest), [])
        if told in twins:
            twins.remove(told)
        if not twins:
            self._twins.pop((told.owner, told.digest), None)

    def _count(self, client: str, size: int) -> None:
        self._bytes += size
        self._taken[client] += size
        if not self._taken[client]:
            del self._taken[client]

    def _grown(self, client: str, size: int) -> None:
        self._count(client, size)
        if self._bytes > self._bounds.max_bytes:
            self._sweep()

    def _forget(self, told: Told) -> None:
        """One that is being told: it goes on, and cannot be come back to."""
        del self._live[told.id]
        self._count(told.client, -told.size)
        told.forget()

    def _sweep(self) -> None:
        """Remove what is too old, or too much."""
        bounds = self._bounds
        while (told := self._late()) is not None:
            self._remove(told)
        while len(self) > bounds.max_count:
            kept = (self._ended or self._cut).values()
            counts = Counter(told.client for told in kept)
            for told in _in_turn(kept, counts):
                counts[told.client] -= 1
                self._remove(told)
                if len(self) <= bounds.max_count:
                    break
        while self._bytes > bounds.max_bytes and (some := self._spare()):
            for told in _in_turn(some, self._taken):
                if told.id in self._live:
                    self._forget(told)
                else:
                    self._remove(told)
                if self._bytes <= bounds.max_bytes:
                    break
        self._arm()

    def _late(self) -> Told | None:
        due = self._clock.monotonic() - float(self._bounds.window)
        oldest = [next(iter(some.values())) for some in (self._ended, self._cut) if some]
        return next((told for told in oldest if told.kept_at <= due), None)

    def _spare(self) -> Collection[Told]:
        """What goes before all else: of what has ended its clients have all, most likely."""
        return self._ended.values() or [*self._cut.values(), *self._live.values()]

    def _arm(self) -> None:
        """Its time is over for what nobody asks for, too."""
        if self._timer is None and len(self):
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(1.0, float(self._bounds.window)), self._look)

    def _look(self) -> None:
        self._timer = None
        self._sweep()


def _of(told: Told, coming: Coming) -> bool:
    return (told.owner, told.digest) == coming.twins


def _in_turn(some: Collection[Told], taken: Counter[str]) -> Iterator[Told]:
    """In the order in which they go: each time the first of the client that has taken the most.
    Whoever takes them away keeps `taken` true; an edit may have thousands go at once.
    """
    own: dict[str, deque[tuple[int, Told]]] = {}
    for place, told in enumerate(some):
        own.setdefault(told.client, deque()).append((place, told))
    clients = [(-taken[client], line[0][0], client) for client, line in own.items()]
    heapq.heapify(clients)
    while clients:
        client = heapq.heappop(clients)[2]
        line = own[client]
        yield line.popleft()[1]
        if line:
            heapq.heappush(clients, (-taken[client], line[0][0], client))


def _expired(policies: PolicySet) -> ResumeExpired:
    return ResumeExpired(
        f"nothing is kept behind this {HEADER}, for this client and this request",
        param=HEADER,
        policy=policies.line("server.resume.window"),
        numbers={"window_seconds": float(policies.server.resume.window)},
        would_pass=f"the same request without {HEADER}, which begins anew",
    )
