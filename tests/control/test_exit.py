"""How a worker ended, and whom that accuses."""

from __future__ import annotations

import pytest

from mlxd.control.exit import Exit


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (Exit(0, asked=True), "stopped"),
        (Exit(-9, asked=True), "stopped"),
        (Exit(-9, verdict="stalled"), "stalled"),
        (Exit(71), "out_of_memory"),
        (Exit(-11), "SIGSEGV"),
        (Exit(-99), "signal 99"),
        (Exit(70), "exit 70"),
    ],
)
def test_an_end_has_one_word(end: Exit, reason: str):
    assert end.reason == reason


@pytest.mark.parametrize(
    ("end", "outside"),
    [
        (Exit(-9), True),
        (Exit(-15), True),
        (Exit(-9, asked=True), False),
        (Exit(-9, verdict="unresponsive"), False),
        (Exit(-9, verdict="suspended"), True),
        (Exit(-9, verdict="over_limit"), True),
        (Exit(-11), False),
        (Exit(-6), False),
        (Exit(70), False),
    ],
)
def test_only_a_signal_that_others_send_accuses_nobody(end: Exit, outside: bool):
    assert end.from_outside is outside
