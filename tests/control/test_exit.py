"""How a worker ended, and whom that accuses."""

from __future__ import annotations

import pytest

from mlxd.control.exit import Exit, last_words


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
        (Exit(-11), False),
        (Exit(-6), False),
        (Exit(70), False),
    ],
)
def test_only_a_signal_that_others_send_accuses_nobody(end: Exit, outside: bool):
    assert end.from_outside is outside


@pytest.mark.parametrize(
    ("stderr", "words"),
    [
        ("", ""),
        ("a\nb\n\n  \n", "b"),
        ("open /home/me/my models/x/code.py: denied", "open code.py: denied"),
        ("File '/srv/a/b.py', line 3", "File 'b.py', line 3"),
        ("half of it 1/2, and/or", "half of it 1/2, and/or"),
        ("x" * 999, "x" * 200),
    ],
)
def test_the_last_words_are_one_line_and_name_no_folder(stderr: str, words: str) -> None:
    assert last_words(stderr) == words
