"""Notices edits of the policy folder, in whatever way they are made. Knows watchfiles.

An event is a hint to look, never news in itself. Where events fail (no inotify left, a network
file system) looking often takes their place. The watching itself never ends before the daemon, and
touches no disk on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

from mlxd.policy.policy_set import FILES

log = logging.getLogger(__name__)

RESCAN_SECONDS = 5.0
"""Between two looks that no event asked for."""
POLL_SECONDS = 0.3
"""The same while there are no events."""
REPAIR_SECONDS = 5.0
"""Until events are tried again after they failed."""
RESTART_SECONDS = 1.0
"""Until a look is tried again after a defect."""
_STEP_MILLISECONDS = 50
"""watchfiles looks this often at what the system has told it; 10 would cost twice the idle CPU."""
_TURN_MILLISECONDS = 1000
"""Between two looks whether the folders are still the same ones, and from when they are listened to
until what was missed meanwhile is looked for.
"""

_THREADS = 2
"""More than watchfiles starts."""

Look = Callable[[], Awaitable[object]]
Watched = dict[Path, tuple[int, int]]
"""Folders, and which ones they are: one of that name may be another later."""


class Watcher:
    """Calls `look` when a file may have changed, and every few seconds anyway."""

    def __init__(self, folder: Callable[[], Path | None], look: Look) -> None:
        self._folder = folder
        self._look = look
        self._hint = asyncio.Event()
        self.up = False
        """Whether the system tells of changes; else they are looked for."""

    async def run(self) -> None:
        """Until cancelled."""
        stop = threading.Event()
        loop = asyncio.get_running_loop()

        def hint() -> None:
            if not stop.is_set():
                loop.call_soon_threadsafe(self._hint.set)

        listening = False
        self._hint.set()
        try:
            while True:
                listening = listening or self._listens(stop, hint)
                await self._pause(RESCAN_SECONDS if self.up else POLL_SECONDS)
                self._hint.clear()
                await self._look_safely()
        finally:
            stop.set()

    def _listens(self, stop: threading.Event, hint: Callable[[], None]) -> bool:
        """False: the system has no thread for it now."""
        listener = threading.Thread(
            target=self._listen, args=(stop, hint), name="policy events", daemon=True
        )
        self.up = True  # until it is known better
        try:
            listener.start()
        except RuntimeError:
            self.up = False
        return self.up

    async def _look_safely(self) -> None:
        try:
            await self._look()
        except Exception:  # the edge: edits are looked for as long as the daemon lives
            log.exception("a look at the policies failed: a defect")
            self._hint.set()
            await asyncio.sleep(RESTART_SECONDS)

    async def _pause(self, seconds: float) -> None:
        """Sleep, unless hinted."""
        try:
            async with asyncio.timeout(seconds):
                await self._hint.wait()
        except TimeoutError:
            pass

    # -- in a thread of its own: a disk may hang

    def _listen(self, stop: threading.Event, hint: Callable[[], None]) -> None:
        """Until told to stop; whatever ends it is logged once, and it begins anew."""
        told = False
        while not stop.is_set():
            try:
                self._hear_events(stop, hint)
                told = False
            except BaseException as error:  # noqa: BLE001 - no events, or a defect, in Rust too
                self.up = False
                if not told:
                    log.warning("policy files are polled: no events from the system: %s", error)
                told = True
                hint()
                stop.wait(REPAIR_SECONDS)

    def _hear_events(self, stop: threading.Event, hint: Callable[[], None]) -> None:
        """Until another folder is to be listened to. Raises what the system gives no events for."""
        from watchfiles import watch  # after the start: it costs time, and nobody waits for it

        folder = self._folder()
        watched = _watched(folder)
        if folder is None:
            self.up = True
            stop.wait(_TURN_MILLISECONDS / 1000)  # there is none yet
            hint()
            return
        counting = _counting(folder, watched)
        heard = False
        _require_threads()
        for events in watch(
            *watched, watch_filter=None, recursive=False, debounce=_STEP_MILLISECONDS,
            step=_STEP_MILLISECONDS, rust_timeout=_TURN_MILLISECONDS,
            yield_on_timeout=True, force_polling=False, stop_event=stop,
        ):  # fmt: skip
            self.up = True
            paths = [Path(event) for _, event in events]
            itself = any(path.name == folder.name for path in paths)
            other = _watched(folder) != watched or _counting(folder, watched) != counting
            if not heard or any(_which(one) in counting for one in {path.parent for path in paths}):
                hint()  # the first time for what happened before there were events
            heard = True
            if itself or other:  # a new folder may have the old one's number
                hint()  # what happens until the new one is listened to
                return


def _require_threads() -> None:
    """Raises RuntimeError where the system would give none: watchfiles starts some of its own, and
    takes the process down with it where it cannot.
    """
    release = threading.Event()
    try:
        for _ in range(_THREADS):
            threading.Thread(target=release.wait, name="policy events, tried", daemon=True).start()
    finally:
        release.set()


def _watched(folder: Path | None) -> Watched:
    """The policy folder, the one that holds it (it may be removed and made again, or be a link
    that is turned), and those in which linked files really are.
    """
    found: Watched = {}
    for one in [] if folder is None else [*_inside(folder), folder.parent]:
        if (which := _which(one)) is not None:
            found[one] = which
    return found


def _which(folder: Path) -> tuple[int, int] | None:
    """None: there is none. Paths do not tell: macOS writes those of events as the disk has them,
    whatever case they were asked for in.
    """
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _counting(folder: Path, watched: Watched) -> set[tuple[int, int]]:
    """The watched folders in which every file counts; the one that holds it may become one."""
    return {watched[one] for one in _inside(folder) if one in watched}


def _inside(folder: Path) -> list[Path]:
    """Those folders in which every file counts."""
    links = [file for name in FILES if (file := folder / name).is_symlink()]
    return [folder, folder.resolve(), *(file.resolve().parent for file in links)]
