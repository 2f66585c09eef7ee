"""Requests on workers that a test has die: what each is asked, and what its client has got."""

from __future__ import annotations

import asyncio
from typing import Any

from mlxd.control.generation import Limits
from mlxd.control.order import Order
from mlxd.control.replay import Replays
from mlxd.control.suspects import Case
from mlxd.control.transcript import Push, Transcript
from mlxd.control.worker import Worker
from mlxd.core.errors import MlxdError
from mlxd.core.events import GenerationEvent, TextDelta
from mlxd.core.models import ModelCard
from mlxd.core.request import GenerationRequest, Sampling
from mlxd.core.story import untold
from mlxd.ipc import messages as ipc
from mlxd.policy.load import load
from tests.support.conversation import Conversation
from tests.support.daemon import write_policies
from tests.support.virtual_time import VirtualLoop

CARD = ModelCard("m", "/m", 1, "0" * 64, 0.0, "llama", 1, "f32", 512)
SIGKILL, SIGSEGV, SIGTERM, MEMORY = -9, -11, -15, 71
"""How a worker ends."""


class Lease:
    """Gives the worker that lives, or the next one once a test has made it."""

    def __init__(self) -> None:
        self.talks: list[Conversation] = []
        self.error: Exception | None = None
        self.came = asyncio.Event()
        self.waiting: MlxdError | None = None

    def waits(self) -> MlxdError | None:
        return self.waiting

    async def worker(self) -> Worker:
        while not self.talks or not self.talks[-1].worker.alive:
            if self.error is not None:
                raise self.error
            self.came.clear()
            await self.came.wait()
        return self.talks[-1].worker


class Request:
    """A client's, and what it has got."""

    def __init__(
        self,
        world: World,
        name: str,
        reads: int = 10**6,
        transcript: Transcript | None = None,
        push: Push | None = None,
        **more: Any,
    ) -> None:
        """`reads`: so many bursts, and no more before it `goes_on`. `transcript`: of another
        request, which this one goes on from.
        """
        self.world, self.name, self.reads = world, name, reads
        self.goes = asyncio.Event()
        self.case = Case("c", CARD, GenerationRequest(model="m", text=name, **more), Sampling())
        limits = Limits(300, 120, 30, 2, world.policies.line)
        self.story = untold()
        order = Order(
            self.case.request, Sampling(), 100, 50, 500, limits, world.loop.now,
            story=self.story, push=push,
        )  # fmt: skip
        lease: Any = world.lease
        self.bursts = world.replays.run(
            order, self.case, lease, world.policies, transcript=transcript
        )
        self.events: list[GenerationEvent] = []
        self.error: BaseException | None = None
        self.task = world.loop.do(lambda: asyncio.ensure_future(self.consume()))
        world.loop.settle()

    async def consume(self) -> None:
        try:
            async for burst in self.bursts:
                self.events += burst
                self.reads -= 1
                if not self.reads:
                    await self.goes.wait()
        except Exception as error:  # noqa: BLE001
            self.error = error
        finally:
            await self.bursts.aclose()

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, TextDelta))

    @property
    def asked(self) -> list[ipc.Generate]:
        """What the worker that lives was asked of it."""
        return [g for g in self.world.talk.of(ipc.Generate) if g.request.text == self.name]

    def is_running(self) -> bool:
        return bool(self.asked) and not self.task.done()

    def starts(self) -> None:
        """It is accepted, its prefill done."""
        id = self.asked[-1].id
        accepted = ipc.Accepted(id, 3, prompt=ipc.packed([7, 8, 9]))
        self.world.says(accepted, ipc.Output(1, [], started=[id], begun=[id]))

    def gets(self, *tokens: int) -> None:
        id = self.asked[-1].id
        for token in tokens:
            output = ipc.Output(1, [ipc.Text(id, f"{token} ")], taken=[ipc.Taken(id, [token])])
            self.world.says(output)

    def ends(self) -> None:
        count = sum(1 for _ in self.text.split())
        self.world.says(
            ipc.Output(1, [ipc.Ended(self.asked[-1].id, "stop", 3, count, 0, 0.1, 0.2)])
        )

    def is_cancelled(self) -> None:
        """The worker has heard that it is."""
        id = self.asked[-1].id
        assert id in [cancel.id for cancel in self.world.talk.of(ipc.Cancel)]
        self.world.says(ipc.Output(1, [ipc.Cancelled(id)]))

    def goes_on(self) -> None:
        self.world.loop.do(self.goes.set)
        self.world.loop.settle()

    def hangs_up(self) -> None:
        self.world.loop.do(self.task.cancel)
        self.world.loop.settle()


class World:
    def __init__(self, loop: VirtualLoop, tmp_path: Any, supervision: str = "") -> None:
        self.loop = loop
        files = {"supervision": supervision} if supervision else {}
        self.policies = load(write_policies(tmp_path / "policies", files))
        self.pressure = False
        self.replays = Replays(loop, lambda: self.pressure)
        self.outcomes: list[str] = []
        self.told: list[Any] = []
        self.replays.on_replay = self.outcomes.append
        self.replays.on_event = lambda type, words, data: self.told.append((type, data))
        self.lease = loop.do(Lease)
        self.spawn()

    @property
    def talk(self) -> Conversation:
        return self.lease.talks[-1]

    def spawn(self) -> None:
        pid = 100 + len(self.lease.talks)
        self.lease.talks.append(self.loop.do(lambda: Conversation(clock=self.loop, pid=pid)))
        self.loop.do(self.lease.came.set)
        self.loop.settle()

    def says(self, *messages: ipc.Up) -> None:
        self.loop.do(self.talk.says, *messages)
        self.loop.settle()

    def dies(self, status: int, *, next_one: bool = True) -> None:
        self.loop.run(self.talk.ends(status))
        self.loop.settle()
        if next_one:
            self.spawn()

    def gate_is_free(self) -> bool:
        gate = self.replays.gate_of(self.talk.worker)
        return not gate._inside and not gate._queue


def key_of(error: Any) -> str:
    """Of the policy that decided."""
    return str(error.policy.key)
