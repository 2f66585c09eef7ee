"""An exception as logs and crash records may show it: files, lines and types, never what somebody
said.

The message of an exception may quote a prompt or an answer: a KeyError shows the key, a JSON error
the text, a template's the variables. So words are shown only of exceptions whose words are made in
mlxd and quote nobody, of errors of the system, and of engines where they say what failed.
"""

from __future__ import annotations

import re
import sys
import threading
import traceback
from collections.abc import Iterator
from types import TracebackType

_OURS = "mlxd."
_MOST_ERRORS = 8
"""Of a chain of causes."""
_MOST_FRAMES = 30
"""At each end of a long stack."""
_LONGEST = 300
_ENGINE = re.compile(
    r"(?:\[(?:METAL|metal::\w+|gpu::\w+|malloc\w*|cuda::?\w*)\]|cu[A-Za-z]+\([^)]{0,80}\) failed|"
    r"CUDA error|std::bad_alloc|[Uu]nable to allocate)[\x20-\x7e]*"
)
"""What MLX begins with where memory or a GPU fails. Its own words, and numbers, are behind it."""


def words_of(error: BaseException) -> str:
    """`Type: words` on one line; the type alone where the words may be somebody's."""
    kind = type(error)
    module = kind.__module__
    name = kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"
    said = "".join(c if c.isprintable() else " " for c in _said(error)[:_LONGEST])
    return f"{name}: {said}" if said else name


def trace_of(error: BaseException) -> str:
    """Its stack and those of what caused it, the first cause first, as Python shows them; without a
    line break at the end.
    """
    chain = list(_chain(error))
    return "\n\n".join("\n".join(_one(cause, link)) for cause, link in reversed(chain))


def place_of(error: BaseException) -> str:
    """`FILE:LINE` where it arose; empty where nobody raised it."""
    frames = traceback.extract_tb(error.__traceback__, limit=-1)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""


def print_trace(error: BaseException, of: str = "") -> None:
    """To stderr. `of`: the `traceparent` of the request that it arose of."""
    if sys.stderr is not None:
        behind = f"\n(of the request with the traceparent {of})" if of else ""
        sys.stderr.write(f"{trace_of(error)}{behind}\n")
        sys.stderr.flush()


def install() -> None:
    """What nobody in this process catches is shown like that, too."""
    sys.excepthook = _uncaught
    threading.excepthook = _in_thread
    sys.unraisablehook = _unraisable


def _said(error: BaseException) -> str:
    if type(error).__module__.startswith(_OURS):
        return "" if getattr(error, "quotes", False) else str(error)
    if isinstance(error, OSError):
        return _of_system(error)
    if isinstance(error, ImportError):
        return f"no {error.name}" if error.name else ""
    found = _ENGINE.match(str(error)) if isinstance(error, RuntimeError | ValueError) else None
    return found[0] if found is not None else ""


def _of_system(error: OSError) -> str:
    """Without the name of a file, which a client may have given."""
    known = isinstance(error.errno, int) and isinstance(error.strerror, str)
    return f"[Errno {error.errno}] {error.strerror}" if known else ""


def _chain(error: BaseException) -> Iterator[tuple[BaseException, str]]:
    """Each with how it came to the one before."""
    seen: set[int] = set()
    link = ""
    at: BaseException | None = error
    while at is not None and id(at) not in seen and len(seen) < _MOST_ERRORS:
        seen.add(id(at))
        yield at, link
        if at.__cause__ is not None:
            at, link = at.__cause__, "which was the direct cause of:"
        else:
            at, link = None if at.__suppress_context__ else at.__context__, "during which arose:"


def _one(error: BaseException, link: str) -> Iterator[str]:
    frames = traceback.extract_tb(error.__traceback__)
    if frames:
        yield "Traceback (most recent call last):"
    left_out = len(frames) - 2 * _MOST_FRAMES
    for index, frame in enumerate(frames):
        if left_out > 0 and index == _MOST_FRAMES:
            yield f"  ({left_out} more)"
        if left_out <= 0 or not _MOST_FRAMES <= index < _MOST_FRAMES + left_out:
            yield f'  File "{frame.filename}", line {frame.lineno}, in {frame.name}'
            if frame.line and frame.filename.endswith(".py"):
                yield f"    {frame.line}"
    yield words_of(error)
    if isinstance(error, BaseExceptionGroup):
        yield from (f"  - {words_of(one)}" for one in error.exceptions[:_MOST_FRAMES])
    if link:
        yield ""
        yield link


def _uncaught(
    _kind: type[BaseException], error: BaseException, _trace: TracebackType | None
) -> None:
    print_trace(error)


def _in_thread(told: threading.ExceptHookArgs) -> None:
    if told.exc_value is not None and not isinstance(told.exc_value, SystemExit):
        print_trace(told.exc_value)


def _unraisable(told: sys.UnraisableHookArgs) -> None:
    if told.exc_value is not None:
        print_trace(told.exc_value)
