"""Who gives way to a new connection, and how often that is looked up."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from mlxd.server.giving_way import PATIENCE_SECONDS, GivingWay, Holding


@dataclass(eq=False)
class Held:
    holding: Holding | None
    silent_since: float
    held_since: float = 0.0
    unheard: bool = False


class Crowd:
    def __init__(self, *held: Held) -> None:
        self.held = list(held)
        self.looks = 0
        self.giving_way = GivingWay(self._look)

    def _look(self) -> list[Held]:
        self.looks += 1
        return self.held

    def next(self, now: float) -> Held | None:
        found = self.giving_way.next(now)
        if found is not None:
            self.held.remove(found)
        return found


def test_slow_ones_go_first_by_their_silence_then_idle_ones() -> None:
    idle, later = Held(Holding.IDLE, 1.0), Held(Holding.IDLE, 2.0)
    slow, slower = Held(Holding.COMING, 6.0), Held(Holding.COMING, 5.0)
    crowd = Crowd(Held(None, 0.0), later, slow, idle, slower)
    assert [crowd.next(10.0) for _ in range(4)] == [slower, slow, idle, later]
    assert crowd.next(20.0) is None


def test_idle_ones_go_before_a_body_that_keeps_coming() -> None:
    coming, quiet = Held(Holding.COMING, 9.99), Held(Holding.COMING, 10.0 - PATIENCE_SECONDS)
    idle, later = Held(Holding.IDLE, 1.0), Held(Holding.IDLE, 9.999)
    crowd = Crowd(coming, later, quiet, idle)
    assert [crowd.next(10.0) for _ in range(4)] == [quiet, idle, later, coming]


@pytest.mark.parametrize("holding", Holding)
def test_nobody_goes_who_has_only_just_come_or_asked(holding: Holding) -> None:
    one = Held(holding, 10.0, held_since=10.0)
    crowd = Crowd(one)
    assert crowd.next(10.0 + PATIENCE_SECONDS * 0.9) is None
    assert crowd.next(10.0 + PATIENCE_SECONDS * 1.5) is one


def test_those_who_all_send_a_little_now_and_then_go_all_the_same() -> None:
    first, second = Held(Holding.COMING, 9.98), Held(Holding.COMING, 9.99)
    assert Crowd(second, first).next(10.0) is first


def test_who_has_gone_on_meanwhile_stays() -> None:
    asked, heard, slow = (Held(Holding.COMING, since) for since in (1.0, 2.0, 3.0))
    last = Held(Holding.COMING, 0.0)
    crowd = Crowd(asked, heard, slow, last)
    assert crowd.next(10.0) is last
    asked.holding = None
    heard.silent_since = 10.0
    assert crowd.next(10.001) is slow
    assert crowd.next(10.002) is None
    assert crowd.next(10.1) is heard


@pytest.mark.parametrize("holding", Holding)
def test_who_is_not_read_yet_is_not_silent(holding: Holding) -> None:
    sent, silent = Held(holding, 1.0, unheard=True), Held(holding, 2.0)
    crowd = Crowd(sent, silent)
    assert crowd.next(10.0) is silent
    assert crowd.next(10.1) is None
    sent.unheard = False
    assert crowd.next(10.2) is sent


def test_a_flood_does_not_look_for_each_of_its_connections() -> None:
    crowd = Crowd(*(Held(Holding.COMING, float(n)) for n in range(100)))
    assert all(crowd.next(1000.0) for _ in range(100))
    assert crowd.looks == 1
    assert [crowd.next(1000.0 + n / 10_000) for n in range(10)] == [None] * 10
    assert crowd.looks == 1
