"""How fast one answer is: what adaptive concurrency goes by. A sample a second, whatever its pace.

Pure: the time is a parameter. It is told by the worker's handle, so a client that reads slowly
makes no answer slow.
"""

from __future__ import annotations

from collections.abc import Callable

Tell = Callable[[float | None, float | None], None]
"""Told seconds to a first token, or seconds between two tokens; the other is None."""
_SAMPLE_SECONDS = 1.0


class Tempo:
    """One request's, over all its workers."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._since = 0.0
        self._count = 0
        """Tokens that there were then."""
        self._runs = False

    def begun(self, now: float, asked: float | None, count: int) -> None:
        """A worker has its first token, when there were `count`. `asked`: since when that was
        awaited; None: it goes on behind another one, and nobody awaits a first token.
        """
        if asked is not None:
            self._tell(now - asked, None)
        self._since, self._count, self._runs = now, count + 1, True

    def tokens(self, now: float, count: int, *, last: bool = False) -> None:
        """There are so many by now; `last`: there come no more."""
        spent, more = now - self._since, count - self._count
        if self._runs and more > 0 and (last or spent >= _SAMPLE_SECONDS):
            self._tell(None, spent / more)
            self._since, self._count = now, count
        self._runs = self._runs and not last
