"""What an engine is said to hold at most, against every batch that can come of it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from mlxd.core.footprint import Footprint, LayerGroup
from mlxd.worker.claim import Claim, Reservation, Stage
from mlxd.worker.prediction import Largest, Prediction
from tests.support.examples import examples

WEIGHTS = 100 * 1024
FOOTPRINT = Footprint(
    WEIGHTS, (LayerGroup(2, 8), LayerGroup(1, 4, window=300)), work_bytes=3, score_bytes=1
)
"""It has a window, and computes with something."""

lengths = st.integers(1, 3000)
running = st.lists(st.tuples(lengths, lengths, st.booleans()), max_size=4)
"""Length that is reserved, and that it has, if it is still there."""
coming = st.lists(
    st.tuples(lengths, st.integers(0, 500), st.sampled_from(["queued", "read", "decoding"])),
    max_size=3,
)
"""Tokens of the prompt, of the answer, and how far it is."""


def reservation(prompt: int, answer: int, stage: Stage, used: int | None = None) -> Reservation:
    claim = Claim(1, prompt, answer, answer, until=0.0)
    return Reservation(claim, prompt + answer, prompt if used is None else used, stage)


@given(running, coming, st.integers(1, 4))
@settings(max_examples=examples(80, 200), deadline=None)
def test_no_batch_that_can_be_takes_more_than_was_predicted(
    running: list[tuple[int, int, bool]], coming: list[tuple[int, int, str]], rows: int
) -> None:
    """Whoever is there yet, with all the padding that there is room for."""
    made = Prediction(FOOTPRINT, rows)
    reservations = [reservation(length, 0, Stage.DECODING) for length, _, _ in running]
    reservations += [reservation(prompt, answer, Stage.QUEUED) for prompt, answer, _ in coming]
    predicted = made.reserved(reservations)
    decoding = [min(length, most) for most, length, stays in running if stays]
    decoding += [prompt + answer for prompt, answer, at in coming if at == "decoding"]
    decoding = decoding[:rows]
    read = [prompt for prompt, _, at in coming if at == "read"][: rows - len(decoding)]
    chunk = 512 if rows == 1 else 0
    room = made.room_of_rows(reservations, predicted)
    assert FOOTPRINT.peak_bytes(decoding, read, chunk, room=room) <= predicted
    assert FOOTPRINT.peak_bytes([*decoding, *read], room=room) <= predicted


def test_a_prompt_is_judged_for_the_time_when_it_is_alone_too() -> None:
    """Its steps are larger then."""
    made = Prediction(FOOTPRINT, 32)
    alone = FOOTPRINT.peak_bytes([], [3000])
    both = made.reserved([reservation(10, 0, Stage.DECODING), reservation(3000, 0, Stage.QUEUED)])
    assert both >= alone > FOOTPRINT.peak_bytes([10], [3000])


def test_a_batch_as_it_is_has_its_lengths_of_now() -> None:
    made = Prediction(FOOTPRINT, 32)
    decoding, joining = (
        reservation(100, 900, Stage.DECODING, 400),
        reservation(700, 900, Stage.JOINING),
    )
    queued = reservation(2000, 900, Stage.QUEUED)
    predicted = FOOTPRINT.peak_bytes([400], [700], room=1 << 20)
    assert made.as_it_is([decoding, joining, queued], 1 << 20) == Largest(predicted, 2, 700)
    assert made.as_it_is([queued], 1 << 20) == Largest()
