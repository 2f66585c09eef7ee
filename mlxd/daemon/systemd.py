"""What systemd is told, where it is the one that started us; elsewhere nobody listens."""

from __future__ import annotations

import os
import time

import sdnotify

from mlxd.core.lines import one_line

_LONGEST_STATUS = 1000
_WORD_SECONDS = 1.0
"""For a word that is not said again. systemd takes them at once unless the machine is in need."""


class Systemd:
    """One socket for all that is said: later there may be no file left for another."""

    def __init__(self) -> None:
        listens = bool(os.environ.get("NOTIFY_SOCKET"))
        self._notifier = sdnotify.SystemdNotifier() if listens else None

    def close(self) -> None:
        if self._notifier is not None and self._notifier.socket is not None:
            self._notifier.socket.close()

    def ready(self, status: str) -> None:
        """At the start, and after each `reloading`."""
        self._notify(f"READY=1\n{_status(status)}")

    def status(self, words: str) -> None:
        """What `systemctl status` shows from now on. It is not waited for."""
        self._notify(_status(words), within=0.0)

    def reloading(self) -> None:
        """Its `notify-reload` then waits for `ready`, and so for the outcome."""
        microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._notify(f"RELOADING=1\nMONOTONIC_USEC={microseconds}")

    def stopping(self, within: float) -> None:
        """It waits for so many seconds even if the unit, which may be older than the policies,
        allows less.
        """
        self._notify(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={round(within * 1e6)}")

    def failed(self, words: str, number: int) -> None:
        """Why this start comes to nothing; `number` is an errno, or 0."""
        failure = f"ERRNO={number}\n" if number else ""
        self._notify(failure + _status(words.replace("\n", "; ")))

    def alive(self) -> None:
        """Never waits for systemd: the event loop says it."""
        self._notify("WATCHDOG=1", within=0.0)

    def _notify(self, words: str, *, within: float = _WORD_SECONDS) -> None:
        if self._notifier is None or self._notifier.socket is None:
            return
        self._notifier.socket.settimeout(within)
        self._notifier.notify(words.encode().decode("latin-1"))  # which is what it encodes with


def _status(words: str) -> str:
    return f"STATUS={one_line(words)[:_LONGEST_STATUS]}"
