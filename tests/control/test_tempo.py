"""A sample a second of what an answer takes, whatever its pace."""

from __future__ import annotations

from typing import Any

from mlxd.control.generation import Generation, Limits, Pulse
from mlxd.control.tempo import Tempo
from mlxd.control.transcript import Transcript
from mlxd.core.clock import ManualClock
from mlxd.core.errors import PolicyLine, WorkerCrashed
from mlxd.ipc import messages as ipc

LIMITS = Limits(100.0, 100.0, 100.0, 1.0, lambda key: PolicyLine(key, "", ""))


class Heard:
    def __init__(self) -> None:
        self.samples: list[Any] = []
        self.tempo = Tempo(lambda ttft, gap: self.samples.append(("ttft", ttft, "gap", gap)))

    @property
    def gaps(self) -> list[float]:
        return [gap for _, ttft, _, gap in self.samples if ttft is None]

    @property
    def ttfts(self) -> list[float]:
        return [ttft for _, ttft, _, _ in self.samples if ttft is not None]


def test_a_long_answer_tells_its_pace_every_second() -> None:
    heard = Heard()
    heard.tempo.begun(10.0, 8.0, 0)
    for step in range(1, 41):
        heard.tempo.tokens(10.0 + step * 0.125, 1 + step)
    assert heard.ttfts == [2.0]
    assert heard.gaps == [0.125] * 5


def test_a_short_answer_tells_it_at_its_end() -> None:
    heard = Heard()
    heard.tempo.begun(1.0, 0.5, 0)
    heard.tempo.tokens(1.25, 3)
    heard.tempo.tokens(1.5, 5, last=True)
    heard.tempo.tokens(9.0, 6)
    assert heard.gaps == [0.125]


def test_an_answer_of_one_token_has_no_pace() -> None:
    heard = Heard()
    heard.tempo.begun(1.0, 0.5, 0)
    heard.tempo.tokens(3.0, 1, last=True)
    assert (heard.ttfts, heard.gaps) == ([0.5], [])


def test_what_is_not_begun_has_none() -> None:
    heard = Heard()
    heard.tempo.tokens(3.0, 10, last=True)
    assert heard.samples == []


async def test_it_is_told_by_the_generations_of_an_answer() -> None:
    heard, clock = Heard(), ManualClock()
    transcript = Transcript()
    transcript.tempo = heard.tempo
    first = Generation(1, LIMITS, clock, Pulse(), transcript)
    clock.advance(2)
    first.begun()
    first.note([1])
    clock.advance(1.5)
    first.note([2, 3, 4])
    assert (heard.ttfts, heard.gaps) == ([2.0], [0.5])
    second = Generation(2, LIMITS, clock, Pulse(), transcript)
    clock.advance(50)  # a load, a prefill: no gap between two tokens of a running answer
    second.begun()
    clock.advance(0.5)
    second.take(ipc.Ended(2, "stop", 1, 7, 0, 0.0, 0.0))
    second.note([5, 6, 7])
    assert (heard.ttfts, heard.gaps) == ([2.0], [0.5, 0.25])
    first.fail(WorkerCrashed("its worker is gone"))
