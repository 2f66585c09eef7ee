"""Answers that are cut and go on: nothing is lost or told twice, and nobody gets another's."""

from __future__ import annotations

import asyncio
import gc
import re
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import cache
from itertools import count, pairwise
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from mlxd.control.dispatch import Asker
from mlxd.control.headway import Headway
from mlxd.control.queue_view import Waiting
from mlxd.control.transcript import Push
from mlxd.core.caller import Caller
from mlxd.core.clock import ManualClock
from mlxd.core.errors import QueueFull, ResumeExpired, WorkerCrashed
from mlxd.core.events import (
    Burst,
    Finished,
    GenerationEvent,
    ReasoningDelta,
    Started,
    TextDelta,
    TokenLogprob,
)
from mlxd.core.models import ModelCard
from mlxd.core.request import Sampling
from mlxd.core.story import Story, untold
from mlxd.dialects.base import EVENT_STREAM, Call, Codec
from mlxd.policy.load import Override, load
from mlxd.policy.policy_set import PolicySet
from mlxd.server.edge import STORY
from mlxd.server.resume import Coming, Resumption
from mlxd.server.stream import Stream
from mlxd.server.told import Told
from tests.dialects.conftest import _RECORDED, RECEIVED, SPOKEN, _events_of
from tests.support.owed import whole

CARD = ModelCard("m", "/m", 1, "0" * 64, 0.0, "llama", 1, "f32", 512, ("completion",))
SAID: Sequence[Burst] = (
    [Started(3)],
    [TextDelta("one ")],
    [TextDelta("two "), TextDelta("three ")],
    [TextDelta("four ")],
    [TextDelta("five ")],
    [TextDelta("six"), Finished("stop", 3, 6)],
)
SPEAKERS = pytest.mark.parametrize("speaker", sorted(SPOKEN))


@cache
def policies(**overrides: str) -> PolicySet:
    chosen = [Override(f"server.resume.{key}", text, "a test") for key, text in overrides.items()]
    return load(None, chosen)


class Client:
    """Takes so many writes, and is gone."""

    def __init__(self, takes: int) -> None:
        self.prepared = True
        self.taken = b""
        self.second = asyncio.Event()
        """It has got two events."""
        self._takes = takes
        self._gone = False

    async def write(self, piece: bytes, *, drain: bool = True) -> None:
        """Like the real one: written at once, and waited for then."""
        if not self._takes:
            self._gone = True
            raise ConnectionResetError
        self._takes -= 1
        self.taken += piece
        if self.taken.count(b"\n\n") >= 2:
            self.second.set()
        if drain:
            await asyncio.sleep(0)

    async def write_eof(self) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def abort(self) -> None:
        self._takes, self._gone = 0, True

    def is_closing(self) -> bool:
        return self._gone


class Request(dict[Any, Any]):
    transport: Any
    writer: Any


class Machine:
    """A daemon's part in it, with a worker that says what it is told to."""

    def __init__(
        self, bursts: Sequence[Burst] = SAID, *, pushes: bool = False, **overrides: str
    ) -> None:
        """`pushes`: whatever may be, as to a reader who always waits."""
        self._pushes = pushes
        self.pushed = 0
        """Bursts that went out past their reader."""
        self.policies = policies(**overrides)
        self.clock = ManualClock()
        self.resumption = Resumption(self.clock, self.policies)
        self.sampling = Sampling(temperature=0)
        self.refusal: Exception | None = None
        self.slot: asyncio.Event | None = None
        """Requests wait for it."""
        self.stories: list[Story] = []
        self._bursts = bursts
        self._left: dict[int, list[Burst]] = {}
        self._ids = count(1)

    def call(self, speaker: str) -> Call:
        spoken = SPOKEN[speaker]
        return spoken.codec.parse(spoken.body | {"stream": True}, id=f"c{next(self._ids)}", now=0.0)

    def coming(self, **more: Any) -> Coming:
        story = untold()
        self.stories.append(story)
        made: dict[str, Any] = {
            "owner": "me", "digest": b"d", "size": 10, "event": "", "reads_ids": True,
            "retried": False, "policies": self.policies, "story": story,
        }  # fmt: skip
        return Coming(**(made | more))

    async def ask(self, speaker: str = "openai.chat", takes: int = 10**6, **more: Any) -> bytes:
        """What a client gets that takes so many writes."""
        codec, coming, call = SPOKEN[speaker].codec, self.coming(**more), self.call(speaker)
        told = await self.resumption.answer_to(coming, call, codec)
        client = Client(takes)
        connection: Any = client
        with (
            suppress(ConnectionResetError),
            self.resumption.telling(told, coming.story, connection),
        ):
            await self._stream(told, call, codec, client).run(an_asker())
        return client.taken

    def _stream(self, told: Told, call: Call, codec: Codec, client: Client) -> Any:
        request = Request({STORY: untold()})
        request.transport = request.writer = client
        clock = SimpleNamespace(monotonic=self.clock.monotonic, wall=lambda: RECEIVED)
        parts: Any = SimpleNamespace(clock=clock, dispatcher=SimpleNamespace(open=self._open))
        call = told.call or call
        encoder = told.encoder or codec.encoder(call)
        asked: Any = request
        stream: Any = Stream(parts, codec, told, asked, self.policies, call=call, encoder=encoder)
        stream._response = client
        return stream

    @asynccontextmanager
    async def _open(
        self, request: Any, asker: Any, headway: Headway
    ) -> AsyncIterator[AsyncIterator[Burst]]:
        if self.refusal is not None:
            raise self.refusal
        headway.begin(CARD, [self.sampling], lambda: 7)
        if self.slot is not None:
            asker.on_wait(Waiting(3, 9.0))
            await self.slot.wait()
        yield self._generated(headway, asker.push if self._pushes else None)

    async def _generated(self, headway: Headway, push: Push | None) -> AsyncIterator[Burst]:
        (transcript,) = headway.transcripts
        while transcript.left:
            burst = transcript.left.pop(0)
            transcript.finished = type(burst[-1]) is Finished
            yield burst
        left = self._left.setdefault(id(transcript), list(self._bursts))
        spoken = False
        while left:
            burst = left.pop(0)
            transcript.add(range(len(burst)))
            transcript.finished = type(burst[-1]) is Finished
            plain = all(isinstance(event, TextDelta | ReasoningDelta) for event in burst)
            if plain and spoken and push is not None and push(burst):
                self.pushed += 1
            else:
                yield burst
                spoken = spoken or plain


def an_asker() -> Any:
    return Asker(Caller("me"), policies(), lambda _: None, untold())


def bursts_of(name: str) -> list[Burst]:
    """One event each, but for some that come together."""
    events: list[GenerationEvent] = _events_of(name)
    return [events[:1], *(events[at : at + 1 + at % 3 // 2] for at in _starts(len(events)))]


def _starts(length: int) -> list[int]:
    found, at = [], 1
    while at < length:
        found.append(at)
        at += 1 + at % 3 // 2
    return found


def last_id(taken: bytes) -> str:
    """Of what a client has read: events whose blank line it has."""
    ids = re.findall(rb"\nid: (\S+)\n\n", read(taken))
    return ids[-1].decode() if ids else ""


def read(taken: bytes) -> bytes:
    """Whole events alone."""
    return taken[: taken.rfind(b"\n\n") + 2] if b"\n\n" in taken else b""


def without_ids(stream: bytes) -> bytes:
    return re.sub(rb"\nid: \S+\n\n", b"\n\n", stream)


# -- ids


@SPEAKERS
@pytest.mark.parametrize("name", sorted(_RECORDED))
async def test_ids_change_nothing_else(speaker: str, name: str) -> None:
    codec, bursts = SPOKEN[speaker].codec, bursts_of(name)
    machine = Machine(bursts)
    encoder = codec.encoder(SPOKEN[speaker].codec.parse(
        SPOKEN[speaker].body | {"stream": True}, id="c1", now=0.0
    ))  # fmt: skip
    plain = b"".join(encoder.feed(burst, RECEIVED) for burst in bursts)
    told = await machine.ask(speaker)
    assert without_ids(told) == plain
    ids = re.findall(rb"\nid: (\S+)\n\n", told)
    events = told.count(b"\n\n") if codec.content_type == EVENT_STREAM else 0
    assert ids == [b"c1-%d" % number for number in range(1, events + 1)]


async def test_who_does_not_ask_for_events_is_told_no_ids() -> None:
    """There are clients that take all between two blank lines for the data of one event."""
    machine = Machine()
    assert await machine.ask(reads_ids=False) == without_ids(await Machine().ask())
    await machine.ask(takes=2)
    assert b"\nid: " not in await machine.ask(reads_ids=False), "nor those of who was cut"
    cut = await machine.ask(takes=2, reads_ids=False)
    again = await machine.ask(reads_ids=False)
    assert again.startswith(cut)
    assert b"\nid: " not in again
    assert machine.resumption.outcomes == {"attached": 1}


@SPEAKERS
@pytest.mark.parametrize("name", sorted(_RECORDED))
async def test_what_is_pushed_is_told_all_the_same(speaker: str, name: str) -> None:
    bursts = bursts_of(name)
    machine = Machine(bursts, pushes=True)
    assert await machine.ask(speaker) == await Machine(bursts).ask(speaker)
    texts = [b for b in bursts if all(isinstance(e, TextDelta | ReasoningDelta) for e in b)]
    assert machine.pushed == max(0, len(texts) - 1)


@pytest.mark.parametrize("pushes", [False, True])
@pytest.mark.parametrize("speaker", ["openai.chat", "openai.responses", "anthropic.messages"])
@pytest.mark.parametrize("name", sorted(_RECORDED))
async def test_cut_behind_any_write_and_in_the_middle_of_any_record_it_goes_on_exactly(
    speaker: str, name: str, pushes: bool
) -> None:
    bursts = bursts_of(name)
    whole = await Machine(bursts).ask(speaker)
    for takes in range(1, len(bursts)):
        machine = Machine(bursts, pushes=pushes)
        taken = await machine.ask(speaker, takes)
        for lost in (0, 1, 30, 400):
            have = read(taken[: max(0, len(taken) - lost)])
            if not have:
                continue
            rest = await machine.ask(speaker, event=last_id(have))
            assert have + rest == whole


@SPEAKERS
async def test_cut_again_and_again_it_goes_on_all_the_same(speaker: str) -> None:
    bursts = bursts_of("thinking_tools" if "thinking_tools" in _RECORDED else min(_RECORDED))
    whole = await Machine(bursts).ask(speaker)
    machine = Machine(bursts)
    if SPOKEN[speaker].codec.content_type != EVENT_STREAM:
        await machine.ask(speaker, 2)
        assert await machine.ask(speaker) == whole, "told from its beginning"
        return
    have = read(await machine.ask(speaker, 1))
    for _ in range(2 * len(bursts)):
        have += read(await machine.ask(speaker, 2, event=last_id(have)))
    assert have == whole


async def test_a_long_burst_that_is_cut_in_its_middle_is_told_to_its_end() -> None:
    many = [TextDelta(f"{number} " * 300) for number in range(200)]
    bursts: list[Burst] = [[Started(3)], [*many, Finished("stop", 3, 200)]]
    whole = await Machine(bursts).ask()
    for takes in (1, 5, 20):
        machine = Machine(bursts)
        have = read(await machine.ask(takes=takes))
        if have:
            assert have + await machine.ask(event=last_id(have)) == whole
        else:
            assert await machine.ask() == whole


# -- who gets what


@pytest.mark.parametrize(
    "other", [{"owner": "you"}, {"digest": b"e"}, {"event": "c1-99"}, {"event": "c2-1"},
              {"event": "c1-x"}, {"event": "c1-0000000000001"}, {"event": "-"}],
)  # fmt: skip
async def test_nothing_is_told_behind_what_is_not_the_clients_own(other: dict[str, Any]) -> None:
    machine = Machine()
    taken = await machine.ask(takes=2)
    with pytest.raises(ResumeExpired) as caught:
        await machine.ask(**({"event": "c1-1"} | other))
    assert caught.value.policy is not None
    assert machine.resumption.outcomes == {"expired": 1}
    assert await machine.ask(event=last_id(taken)), "its own client still gets it"


async def test_the_end_may_be_asked_for_once_more_until_the_window_is_over() -> None:
    machine = Machine(window="60s")
    whole = await machine.ask()
    for _ in range(2):
        assert await machine.ask(event="c1-2") == whole[whole.index(b"c1-2\n\n") + 6 :]
    machine.clock.advance(59)
    assert await machine.ask(event=last_id(whole)) == b""
    machine.clock.advance(60)
    with pytest.raises(ResumeExpired):
        await machine.ask(event="c1-2")
    assert (len(machine.resumption), machine.resumption.size) == (0, 0)


async def test_a_connection_that_looks_open_is_taken_over() -> None:
    machine = Machine()
    coming, call, codec = machine.coming(), machine.call("openai.chat"), SPOKEN["openai.chat"].codec
    told = await machine.resumption.answer_to(coming, call, codec)
    client = Client(10**6)
    connection: Any = client

    async def first() -> None:
        with machine.resumption.telling(told, coming.story, connection):
            await machine._stream(told, call, codec, client).run(an_asker())

    task = asyncio.create_task(first())
    await client.second.wait()
    have = read(client.taken)
    rest = await machine.ask(event=last_id(have))
    with pytest.raises(ConnectionResetError):
        await task
    assert have + rest == await Machine().ask()
    assert machine.resumption.outcomes == {"taken_over": 1}


async def test_what_was_told_comes_at_once_while_the_rest_waits_for_a_slot() -> None:
    machine = Machine()
    have = read(await machine.ask(takes=1))
    machine.slot = asyncio.Event()
    coming, call = machine.coming(event=last_id(have)), machine.call("openai.chat")
    codec = SPOKEN["openai.chat"].codec
    told = await machine.resumption.answer_to(coming, call, codec)
    client = Client(10**6)
    connection: Any = client
    with machine.resumption.telling(told, coming.story, connection):
        run = machine._stream(told, call, codec, client).run(an_asker())
        task = asyncio.create_task(run)
        await client.second.wait()
        assert b"three" in client.taken
        machine.slot.set()
        await task
    assert have + client.taken == await Machine().ask()


async def test_who_leaves_while_waiting_for_a_slot_is_no_error_of_anybodys() -> None:
    machine = Machine()
    have = read(await machine.ask(takes=1))
    machine.slot = asyncio.Event()
    errors: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    asked = asyncio.create_task(machine.ask(takes=0, event=last_id(have)))
    for _ in range(20):
        await asyncio.sleep(0)
    asked.cancel()
    await asyncio.wait([asked])
    gc.collect()
    await asyncio.sleep(0)
    assert not errors
    machine.slot = None
    assert have + await machine.ask(event=last_id(have)) == await Machine().ask()


# -- the same again


@pytest.mark.parametrize(
    ("attach", "sampling", "retried", "again"),
    [
        ("sure", Sampling(temperature=0), False, "c1"),
        ("sure", Sampling(temperature=1, seed=3), False, "c1"),
        ("sure", Sampling(temperature=1), False, "c2"),
        ("sure", Sampling(temperature=1), True, "c1"),
        ("always", Sampling(temperature=1), False, "c1"),
        ("off", Sampling(temperature=0), True, "c2"),
    ],
)
async def test_the_same_again_goes_on_where_that_is_what_its_client_expects(
    attach: str, sampling: Sampling, retried: bool, again: str
) -> None:
    machine = Machine(attach=attach)
    machine.sampling = sampling
    await machine.ask(takes=2)
    told = await machine.ask(retried=retried)
    assert without_ids(told) == without_ids(await Machine().ask()).replace(b"c1", again.encode())


async def test_only_one_that_was_cut_is_gone_on_with_and_once() -> None:
    machine = Machine()
    await machine.ask(takes=2)
    assert b"-c1" in await machine.ask()
    assert b"-c3" in await machine.ask(), "that has ended"
    assert machine.resumption.outcomes == {"attached": 1}


async def test_an_answer_that_failed_is_not_kept_and_one_that_was_refused_is() -> None:
    machine = Machine()
    taken = await machine.ask(takes=2)
    machine.refusal = QueueFull("full")
    for _ in range(3):
        with pytest.raises(QueueFull):
            await machine.ask(event=last_id(taken))
    machine.refusal = None
    assert read(taken) + await machine.ask(event=last_id(taken)) == await Machine().ask()
    machine.refusal = WorkerCrashed("gone")
    with pytest.raises(WorkerCrashed):
        await machine.ask()
    machine.refusal = None
    assert b"-c6" in await machine.ask() or machine.resumption.outcomes["attached"] == 0


async def test_one_whose_model_has_changed_does_not_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    taken = await machine.ask(takes=2)
    monkeypatch.setattr("tests.server.test_resume.CARD", _changed(CARD))
    with pytest.raises(ResumeExpired, match="has changed"):
        await machine.ask(event=last_id(taken))
    assert len(machine.resumption) == 0


async def test_who_drafts_for_its_model_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    taken = await machine.ask(takes=2)
    drafter = replace(CARD, name="d", path="/d")
    monkeypatch.setattr("tests.server.test_resume.CARD", replace(CARD, draft=drafter))
    assert read(taken) + await machine.ask(event=last_id(taken)) == await Machine().ask()


def _changed(card: ModelCard) -> ModelCard:
    return replace(card, digest="1" * 64)


async def test_who_asks_the_same_from_behind_the_same_address_is_not_cut_by_the_other() -> None:
    """Both are told all of an answer, though it is one; nobody takes over what the other reads."""
    machine = Machine()
    first = await machine.ask(takes=2)
    coming, call, codec = machine.coming(), machine.call("openai.chat"), SPOKEN["openai.chat"].codec
    told = await machine.resumption.answer_to(coming, call, codec)
    client = Client(10**6)
    connection: Any = client
    with machine.resumption.telling(told, coming.story, connection):
        with pytest.raises(ResumeExpired):
            await machine.ask(event=last_id(first))
        await machine._stream(told, call, codec, client).run(an_asker())
    whole = await Machine().ask()
    assert without_ids(client.taken) == without_ids(whole)
    assert re.findall(rb"\nid: (\S+)\n\n", client.taken) == [
        b"c2-%d" % number for number in range(1, whole.count(b"\n\n") + 1)
    ]
    behind = client.taken[client.taken.index(b"c2-2\n\n") + 6 :]
    assert await machine.ask(event="c2-2") == behind


async def test_who_asks_anew_has_given_up_what_was_cut() -> None:
    """As a person does who has stopped an answer: a retry of the next one is not told the first."""
    machine = Machine()
    machine.sampling = Sampling(temperature=1)
    stopped = await machine.ask(takes=2)
    machine.refusal = QueueFull("full")
    with pytest.raises(QueueFull):
        await machine.ask()
    machine.refusal = None
    assert b"-c3" in await machine.ask(retried=True)
    assert await machine.ask(event=last_id(stopped)), "by its id it can be come back to"
    assert not machine.resumption._twins


LONG: list[Burst] = [
    [Started(3)],
    *([TextDelta(f"number {number} of many")] for number in range(400)),
    [Finished("stop", 3, 400)],
]


@pytest.mark.parametrize("takes", [1, 2, 7, 12])
async def test_a_long_one_that_is_cut_while_it_is_told_again_goes_on(takes: int) -> None:
    """Byte for byte: by the last id, and by the same request."""
    said = await Machine(LONG).ask()
    machine = Machine(LONG)
    first = read(await machine.ask(takes=350))
    again = without_ids(await machine.ask(takes=takes))
    assert without_ids(said).startswith(again)
    assert without_ids(await machine.ask()) == without_ids(said)
    machine = Machine(LONG)
    have = read(await machine.ask(takes=350))[: len(first) // 3]
    have = have[: have.rindex(b"\n\n") + 2]
    for _ in range(3):
        have += read(await machine.ask(takes=takes, event=last_id(have)))
    assert have + await machine.ask(event=last_id(have)) == said


async def test_others_have_their_turn_while_a_long_one_is_told_again() -> None:
    """However fast its client takes it."""
    machine = Machine(LONG)
    await machine.ask(takes=350)
    coming, call, codec = machine.coming(), machine.call("openai.chat"), SPOKEN["openai.chat"].codec
    told = await machine.resumption.answer_to(coming, call, codec)
    client, turns = Client(10**6), []
    write = client.write
    monkey: Any = client
    monkey.write = lambda piece, drain=True: write(piece, drain=False)
    loop = asyncio.get_running_loop()

    def other() -> None:
        turns.append(len(client.taken))
        loop.call_soon(other)

    other()
    await machine._stream(told, call, codec, client)._write(b"")
    steps = [after - before for before, after in pairwise(turns)]
    assert len(client.taken) > 60_000
    assert max(steps) < 20_000


# -- bounds


async def test_what_is_told_takes_a_part_of_what_it_says_and_tells_of_it() -> None:
    machine = Machine()
    call = machine.call("openai.chat")
    grown: list[int] = []
    told = Told(call, None, ids=True, grown=grown.append)
    records = [told.tell(b"data: %d\n\n" % number) for number in range(5000)]
    assert 0 < sum(grown) == told.size < len(b"".join(records)) / 4
    assert len(grown) < 50
    told.settle()
    assert whole(told.behind(0)) == b"".join(records)
    assert whole(told.behind(4990)) == b"".join(records[4990:])


async def test_a_whole_answer_takes_what_there_is_of_it() -> None:
    """Scores above all, which are many times as long as its text."""
    machine = Machine()
    told = Told(machine.call("openai.chat"), None, grown=lambda _: None)
    told.settle()
    empty = told.size
    score = TokenLogprob("x", b"x", -1.0, tuple(("y", b"y", -2.0) for _ in range(20)))
    told.folds[0].add([TextDelta("x" * 1000, (score,) * 100)])
    told.settle()
    assert told.size - empty > 100 * 21 * 100


async def test_the_oldest_goes_first_and_what_ended_before_what_was_cut() -> None:
    machine = Machine(max_count="3")
    cut = await machine.ask(takes=2, digest=b"cut")
    for number in range(5):
        await machine.ask(digest=b"ended %d" % number)
    assert len(machine.resumption) == 3
    with pytest.raises(ResumeExpired):
        await machine.ask(event="c2-1", digest=b"ended 0")
    assert await machine.ask(event=last_id(cut), digest=b"cut")


async def test_what_is_kept_stays_within_its_bytes() -> None:
    machine = Machine(max_bytes="20KiB")
    for number in range(100):
        await machine.ask(takes=2 + number % 3, digest=b"%d" % number)
        assert machine.resumption.size <= 20 * 1024
    assert len(machine.resumption) > 2


async def test_one_that_grows_beyond_them_goes_on_and_is_kept_no_more() -> None:
    random = Random(1)
    long = [[TextDelta(random.randbytes(250).hex())] for _ in range(200)]
    bursts: list[Burst] = [[Started(3)], *long, [Finished("stop", 3, 200)]]
    machine = Machine(bursts, max_bytes="20KiB")
    whole = await machine.ask()
    assert without_ids(whole) == without_ids(await Machine(bursts).ask())
    assert (len(machine.resumption), machine.resumption.size) == (0, 0)


@pytest.mark.parametrize(("name", "bound"), [("max_bytes", "24KiB"), ("max_count", "4")])
async def test_who_takes_the_most_loses_its_own(name: str, bound: str) -> None:
    machine = Machine(SAID, pushes=False, **{name: bound})
    taken = await machine.ask(takes=2, story=untold("little"), digest=b"little")
    for number in range(20):
        await machine.ask(takes=2, story=untold("much"), digest=b"%d" % number)
    whole = await Machine().ask()
    rest = await machine.ask(event=last_id(taken), story=untold("little"), digest=b"little")
    assert read(taken) + rest == whole


@pytest.mark.parametrize(("name", "bound"), [("max_bytes", "1B"), ("max_count", "1")])
async def test_an_edit_that_many_go_by_looks_at_each_a_few_times(name: str, bound: str) -> None:
    looked = 0

    class Kept(SimpleNamespace):
        @property
        def client(self) -> str:
            nonlocal looked
            looked += 1
            return f"client {int(self.id) % 7}"

    clock = ManualClock()
    resumption = Resumption(clock, policies(max_count="1000"))
    for number in range(1000):
        kept: Any = Kept(id=str(number), size=100, kept_at=clock.monotonic())
        resumption._ended[kept.id] = kept
        resumption._count(kept.client, kept.size)
    looked = 0
    resumption.apply(policies(**{"max_count": "1000", name: bound}))
    assert len(resumption) <= 1
    assert looked <= 10 * 1000


@pytest.mark.parametrize("bound", ["max_bytes", "max_count"])
async def test_of_many_each_time_the_first_of_who_takes_the_most_goes(bound: str) -> None:
    random, clock = Random(3), ManualClock()
    for _ in range(25):
        resumption = Resumption(clock, policies(max_count="1000"))
        for number in range(random.randrange(1, 30)):
            size = 100 * random.randrange(1, 6) if bound == "max_bytes" else 100
            kept: Any = SimpleNamespace(
                id=str(number), client=random.choice("abcd"), size=size, kept_at=clock.monotonic()
            )
            resumption._ended[kept.id] = kept
            resumption._count(kept.client, kept.size)
        left: list[Any] = [*resumption._ended.values()]
        most = random.randrange(1, len(left) + 1)
        while sum(one.size for one in left) > 100 * most:
            taken = Counter[str]()
            for one in left:
                taken[one.client] += one.size
            client = max((one.client for one in left), key=taken.__getitem__)
            left.remove(next(one for one in left if one.client == client))
        text = f"{100 * most}B" if bound == "max_bytes" else str(most)
        resumption.apply(policies(**{"max_count": "1000", bound: text}))
        assert [*resumption._ended] == [one.id for one in left]


async def test_one_that_grows_beyond_all_bounds_costs_others_nothing() -> None:
    random = Random(1)
    machine = Machine(max_bytes="20KiB")
    taken = await machine.ask(takes=2, story=untold("little"), digest=b"little")
    long = [[TextDelta(random.randbytes(250).hex())] for _ in range(200)]
    machine._bursts = [[Started(3)], *long, [Finished("stop", 3, 200)]]
    await machine.ask(story=untold("much"), digest=b"much")
    machine._bursts = SAID
    rest = await machine.ask(event=last_id(taken), story=untold("little"), digest=b"little")
    assert read(taken) + rest == await Machine().ask()


async def test_off_keeps_nothing_and_forgets_what_was_kept() -> None:
    machine = Machine()
    taken = await machine.ask(takes=2)
    machine.resumption.apply(policies(window="0s"))
    assert (len(machine.resumption), machine.resumption.size) == (0, 0)
    with pytest.raises(ResumeExpired):
        await machine.ask(event=last_id(taken))
    assert b"\nid: " not in await machine.ask()
    await machine.ask(takes=2)
    assert (len(machine.resumption), machine.resumption.size) == (0, 0)


async def test_many_that_are_cut_leave_no_trace_when_the_window_is_over() -> None:
    machine = Machine(max_count="100000")
    for number in range(300):
        taken = await machine.ask(takes=2, digest=b"%d" % (number % 50))
        if number % 3 == 0:
            await machine.ask(takes=1, event=last_id(taken), digest=b"%d" % (number % 50))
    machine.clock.advance(61)
    machine.resumption.apply(machine.policies)
    assert (len(machine.resumption), machine.resumption.size) == (0, 0)
    assert not machine.resumption._live
    assert not machine.resumption._twins
    assert not machine.resumption._taken


# -- what is told of it


async def test_stories_tell_it() -> None:
    machine = Machine()
    taken = await machine.ask(takes=2)
    await machine.ask(event=last_id(taken))
    first, second = machine.stories
    assert [(note.what, note.facts) for note in first.notes] == [
        ("kept", {"tokens": 5, "records": 5})
    ]
    (resumed,) = second.notes
    assert resumed.what == "resumed"
    assert (resumed.facts["how"], resumed.facts["tokens"]) == ("resumed", 5)


async def test_a_comment_behind_an_id_is_no_event_to_openais_client() -> None:
    """It keeps the id, as it should, and takes the next blank line for an event."""
    streaming = pytest.importorskip("openai._streaming")
    machine = Machine()
    told = await machine.ask()
    first, *others = told.split(b"\n\n")
    call, codec = machine.call("openai.chat"), SPOKEN["openai.chat"].codec
    stream = machine._stream(Told(call, codec.encoder(call)), call, codec, Client(9))
    assert stream._harmless(b": waiting\n\n") == b": waiting\n\n"
    stream._answer.count = 1
    stream._response.prepared = False
    assert stream._harmless(b": waiting\n\n") == b": waiting\n", "behind what it is owed"
    comment = stream._harmless(b": waiting\n\n")
    pieces = [first + b"\n\n", comment, comment, b"\n\n".join(others)]
    events = list(streaming.SSEDecoder().iter_bytes(iter(pieces)))
    assert all(event.data for event in events)
    assert len(events) == told.count(b"\n\n")
