"""What systemd is told, where it is the one that started us; elsewhere nobody listens."""

from __future__ import annotations

import os
import time

import sdnotify

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

    def ready(self, status: str = "") -> None:
        """At the start, and after each `reloading`."""
        self._notify(f"READY=1\nSTATUS={status}" if status else "READY=1")

    def reloading(self) -> None:
        """Its `notify-reload` then waits for `ready`, and so for the outcome."""
        microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._notify(f"RELOADING=1\nMONOTONIC_USEC={microseconds}")

    def stopping(self) -> None:
        self._notify("STOPPING=1")

    def alive(self) -> None:
        """Never waits for systemd: the event loop says it."""
        self._notify("WATCHDOG=1", within=0.0)

    def _notify(self, words: str, *, within: float = _WORD_SECONDS) -> None:
        if self._notifier is None or self._notifier.socket is None:
            return
        self._notifier.socket.settimeout(within)
        self._notifier.notify(words.encode().decode("latin-1"))  # which is what it encodes with
