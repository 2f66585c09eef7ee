"""Notices edits of the policy folder, in whatever way they are made. Knows watchfiles.

An event is a hint to look, never news in itself. Where events fail (no inotify left, a network
file system) looking often takes their place. The watching itself never ends before the daemon.
"""

from __future__ import annotations

import asyncio
import logging
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
"""Until the watching begins anew after a defect."""
_STEP_MILLISECONDS = 20
"""watchfiles looks this often at what the system has told it; 10 would cost twice the idle CPU."""

Look = Callable[[], Awaitable[object]]


class Watcher:
    """Calls `look` when a file may have changed, and every few seconds anyway."""

    def __init__(self, folder: Callable[[], Path | None], look: Look) -> None:
        self._folder = folder
        self._look = look
        self._hint = asyncio.Event()
        self.up = False
        """Whether the system tells of changes; else they are looked for."""

    async def run(self) -> None:
        """Until cancelled; whatever ends it is logged, and it begins anew."""
        while True:
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._listen(), name="policy events")
                    tasks.create_task(self._look_again_and_again(), name="policy rescan")
            except* Exception:  # the edge: edits are looked for as long as the daemon lives
                log.exception("the watcher of policies failed: a defect; it starts again")
            self.up = False
            await asyncio.sleep(RESTART_SECONDS)

    async def _look_again_and_again(self) -> None:
        while True:
            await self._pause(RESCAN_SECONDS if self.up else POLL_SECONDS)
            self._hint.clear()
            await self._look()

    async def _pause(self, seconds: float) -> None:
        """Sleep, unless hinted."""
        try:
            async with asyncio.timeout(seconds):
                await self._hint.wait()
        except TimeoutError:
            pass

    async def _listen(self) -> None:
        while True:
            try:
                await self._hear_events()
            except (OSError, RuntimeError) as error:
                if self.up:
                    log.warning("policy files are polled: no events from the system: %s", error)
            self.up = False
            await asyncio.sleep(REPAIR_SECONDS)

    async def _hear_events(self) -> None:
        """Returns never; raises when the system gives no events."""
        from watchfiles import awatch  # after the start: it costs time, and nobody waits for it

        while True:
            watched = _watched(self._folder())
            self.up = True
            self._hint.set()  # what happened while nobody listened
            if not watched:
                await asyncio.sleep(RESCAN_SECONDS)  # there is no folder yet
                continue
            async for events in awatch(
                *watched, watch_filter=None, recursive=False, debounce=_STEP_MILLISECONDS,
                step=_STEP_MILLISECONDS, rust_timeout=int(RESCAN_SECONDS * 1000),
                yield_on_timeout=True, force_polling=False,
            ):  # fmt: skip
                if any(_concerns(Path(path), watched) for _, path in events):
                    self._hint.set()
                if _watched(self._folder()) != watched:
                    break  # a folder was replaced: listen to the new one


def _watched(folder: Path | None) -> dict[Path, tuple[int, int]]:
    """The folders to listen to, and which ones they are: one of that name may be another later.

    The policy folder, the one that holds it (it may be removed and made again, or be a link that
    is turned), and those in which linked files really are.
    """
    if folder is None:
        return {}
    wanted = [folder, folder.parent, folder.resolve()]
    wanted += [file.resolve().parent for name in FILES if (file := folder / name).is_symlink()]
    found: dict[Path, tuple[int, int]] = {}
    for one in wanted:
        try:
            status = one.stat()
        except OSError:
            continue
        found[one] = (status.st_dev, status.st_ino)
    return found


def _concerns(path: Path, watched: dict[Path, tuple[int, int]]) -> bool:
    """Of the folder around the policy folder only the policy folder itself matters."""
    policy_folder = next(iter(watched))
    around = policy_folder.parent
    return path.parent != around or path == policy_folder or len(watched) == 1
