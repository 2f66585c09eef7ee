"""What is fuzzed: something that reads bytes of anybody's, and what it may answer them with."""

from __future__ import annotations

import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

MOST_SECONDS = 1.0
"""Of the processor, for one case."""
MOST_GROWTH = 256 * 2**20
"""Bytes by which one case may raise the most that this process has held."""
LONGEST_WORDS = 2000
_LEAKS = re.compile(
    r"Traceback|\.py\b|object at 0x|pydantic|msgspec|<class|/tmp/|/home/|site-packages|NoneType"
)


@dataclass(frozen=True, slots=True)
class Target:
    """One reader. `run` raises nothing but `refusals`, and AssertionError for a promise broken."""

    name: str
    run: Callable[[bytes], None]
    refusals: tuple[type[Exception], ...]
    seeds: Sequence[bytes]
    words: Sequence[bytes] = ()
    """What is worth writing into a case."""
    traced: tuple[str, ...] = ("/mlxd/",)
    """Parts of the paths of code that a case may find new ways through."""
    parse_errors_may_quote: bool = False
    """Its refusals repeat what they were given, such as names that look like a leak."""


class _TooSlow(BaseException):
    """Not an Exception: nobody on the way may take it for his own."""


def flaw_of(target: Target, case: bytes) -> str:
    """What is wrong with how a case was answered, in a line; empty where nothing is."""
    held = _most_held()
    began = time.process_time()
    try:
        with _limited(2 * MOST_SECONDS):
            target.run(case)
        flaw = ""
    except target.refusals as error:
        flaw = flaw_in_words(str(error), quotes=target.parse_errors_may_quote)
    except _TooSlow:
        flaw = f"takes more than {2 * MOST_SECONDS:g} s"
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        flaw = f"{type(error).__name__}{_place(error)}: {str(error)[:150]}"
    if not flaw and _most_held() - held > MOST_GROWTH:
        flaw = f"takes more than {MOST_GROWTH >> 20} MiB"
    if not flaw and time.process_time() - began > MOST_SECONDS:
        flaw = f"takes more than {MOST_SECONDS:g} s"
    return flaw


def flaw_in_words(words: str, *, quotes: bool = False) -> str:
    """Why these are none for a client."""
    if len(words) > LONGEST_WORDS:
        return f"a refusal of {len(words)} characters"
    leak = None if quotes else _LEAKS.search(words)
    return f"a refusal that says {leak[0]!r}: {words[:150]!r}" if leak else ""


def _place(error: Exception) -> str:
    """The last line of ours that it came through."""
    found, trace = "", error.__traceback__
    while trace is not None:
        path = trace.tb_frame.f_code.co_filename
        if "/tests/fuzz/target" not in path or not found:
            found = f" in {'/'.join(path.split('/')[-2:])}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found


def _most_held() -> int:
    """Bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Of the processor's time. Python's own regular expressions look at signals now and then."""

    def over(_: int, frame: FrameType | None) -> NoReturn:
        raise _TooSlow

    before = signal.signal(signal.SIGVTALRM, over)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
