"""What systemd is told, where it is the one that started us; elsewhere nobody listens."""

from __future__ import annotations

import time

import sdnotify


def ready(status: str = "") -> None:
    """At the start, and after each `reloading`."""
    _notify(f"READY=1\nSTATUS={status}" if status else "READY=1")


def reloading() -> None:
    """Its `notify-reload` then waits for `ready`, and so for the outcome."""
    microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    _notify(f"RELOADING=1\nMONOTONIC_USEC={microseconds}")


def stopping() -> None:
    _notify("STOPPING=1")


def alive() -> None:
    """Never waits for systemd: the event loop says it."""
    notifier = sdnotify.SystemdNotifier()
    if notifier.socket is not None:
        notifier.socket.setblocking(False)
    notifier.notify("WATCHDOG=1")


def _notify(words: str) -> None:
    sdnotify.SystemdNotifier().notify(words)
