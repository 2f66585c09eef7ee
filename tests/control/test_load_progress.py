"""How far a load is, in words that are true."""

from __future__ import annotations

from mlxd.control.load_progress import STARTS, WAITS, LoadProgress, Told, backing_off
from mlxd.core.clock import ManualClock
from mlxd.ipc.messages import Loading
from mlxd.server.load_report import words_of


def test_a_load_says_where_it_is_and_how_long_it_will_take() -> None:
    clock = ManualClock()
    told = Told(clock)
    assert told.progress(10.0) == STARTS, "nobody knows how long a process takes"
    told.hear(Loading("weights"))
    assert told.progress(None) == LoadProgress("weights", 0.0)
    clock.advance(4.0)
    told.hear(Loading("weights", 43, 100))
    assert told.progress(10.0) == LoadProgress("weights", 0.43, 6.0)
    told.hear(Loading("tokenizer"))
    assert told.progress(10.0) == LoadProgress("tokenizer", 1.0, 6.0)
    clock.advance(7.0)
    assert told.progress(10.0) == LoadProgress("tokenizer", 1.0), "it takes longer than usual"


def test_it_is_told_in_words_and_in_comments_of_streams() -> None:
    assert str(WAITS) == "loading: it waits for room"
    assert str(STARTS) == "loading: it starts its process"
    weights = LoadProgress("weights", 0.439, 2.6)
    assert str(weights) == "loading 43 %: it reads its weights, about 3 s left"
    assert words_of(weights) == "loading stage=weights percent=43 expected_wait=3"
    assert words_of(WAITS) == "loading stage=room percent=0"
    again = backing_off(4.0, usual=2.0)
    assert str(again) == "loading: it is started again after a failure, about 6 s left"
    assert words_of(again) == "loading stage=back_off percent=0 expected_wait=6"
    assert str(backing_off(4.0, usual=None)) == "loading: it is started again after a failure"
