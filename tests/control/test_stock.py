"""How many spares there are to be, and when the next one is started: decisions alone."""

from __future__ import annotations

import math

import pytest

from mlxd.control.stock import AMPLE_BYTES, SETTLE_SECONDS, Stock, wanted
from mlxd.control.watermarks import Level
from mlxd.policy.schema.supervision import Worker as WorkerPolicy

POLICY = WorkerPolicy()


@pytest.mark.parametrize(
    ("policy", "total", "level", "many"),
    [
        ("auto", AMPLE_BYTES, Level.NORMAL, 1),
        ("auto", AMPLE_BYTES - 1, Level.NORMAL, 0),
        ("auto", None, Level.NORMAL, 0),
        ("auto", 100 * AMPLE_BYTES, Level.WARNING, 0),
        (2, 1, Level.NORMAL, 2),
        (2, 100 * AMPLE_BYTES, Level.WARNING, 0),
        (0, 100 * AMPLE_BYTES, Level.NORMAL, 0),
    ],
)
def test_how_many_there_are_to_be(policy, total, level, many) -> None:
    assert wanted(policy, total, level) == many


@pytest.fixture
def stock() -> Stock:
    return Stock(0.0)


def test_the_first_one_waits_until_the_daemon_has_started(stock: Stock) -> None:
    assert stock.next_start(1, 0.0, POLICY) == SETTLE_SECONDS
    assert stock.next_start(0, 0.0, POLICY) == math.inf


def test_none_is_started_beside_a_load(stock: Stock) -> None:
    stock.load_begins()
    stock.load_begins()
    assert stock.next_start(1, 10.0, POLICY) == math.inf
    stock.load_ended(20.0)
    assert stock.next_start(1, 20.0, POLICY) == math.inf
    stock.load_ended(30.0)
    assert stock.next_start(1, 30.0, POLICY) == 30.0 + SETTLE_SECONDS


def test_one_that_fails_is_replaced_as_late_as_a_worker_would_be(stock: Stock) -> None:
    now, waits = 100.0, []
    for _ in range(5):
        stock.starts(now, POLICY)
        stock.failed(now, POLICY)
        waits.append(stock.next_start(1, now, POLICY) - now)
        now = stock.next_start(1, now, POLICY)
    assert waits == [2, 4, 8, 16, 32]
    stock.starts(now, POLICY)
    stock.failed(now, POLICY)
    assert stock.next_start(1, now, POLICY) - now == 60, "its breaker is open"
    now += 60
    stock.starts(now, POLICY)
    stock.warm()
    assert stock.next_start(1, now + 300, POLICY) <= now + 300
    stock.failed(now + 300, POLICY)
    assert stock.next_start(1, now + 300, POLICY) == now + 302, "the count began anew"


def test_probes_that_fail_end_in_quarantine(stock: Stock) -> None:
    now = last = 100.0
    for _ in range(6 + 5):
        stock.starts(now, POLICY)
        stock.failed(now, POLICY)
        last, now = now, stock.next_start(1, now, POLICY)
    assert now - last == 3600
