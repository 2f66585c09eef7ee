"""The memory cgroup that this process runs in, version 1 or 2: its limit, and what counts.

Every function takes the root that `proc` and the mounts are found under, so that a test can hand
it a tree of files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

_OCTAL = re.compile(r"\\([0-7]{3})")
_OF_FILES = {
    1: ("total_inactive_file", "total_active_file", "total_mapped_file"),
    2: ("inactive_file", "active_file", "file_mapped"),
}
"""Pages that were not used lately, that were, and of both those that are mapped, in memory.stat."""
_UNLIMITED = 1 << 60
"""Version 1 writes a number near 2**63 where there is no limit."""


@dataclass(frozen=True, slots=True)
class Group:
    """A memory cgroup."""

    folders: tuple[Path, ...]
    """Of this group and of those around it, the nearest first: each of them may have a limit."""
    version: int


@dataclass(frozen=True, slots=True)
class Limit:
    """What a group may hold and holds, in bytes."""

    total: int
    used: int
    """Without pages of files that the kernel would drop for others."""

    @property
    def available(self) -> int:
        return max(0, self.total - self.used)

    @property
    def share(self) -> float:
        """0 to 1, in use."""
        return min(1.0, self.used / self.total) if self.total else 1.0


def own_group(root: Path) -> Group | None:
    """The group of this process; None where the system has none. Raises OSError, ValueError."""
    return _group_of(root, (root / "proc/self/cgroup").read_text())


@lru_cache(maxsize=8)
def _group_of(root: Path, cgroup: str) -> Group | None:
    """By what the kernel says of this process: requests ask for it, and it seldom changes."""
    memberships = _memberships(cgroup)
    mounts = list(_mounts((root / "proc/self/mountinfo").read_text()))
    for version in (1, 2):  # where both are mounted, memory is counted by the first
        path = memberships.get("memory" if version == 1 else "")
        for mount in mounts:
            if path is not None and mount.version == version:
                top = root / mount.point.relative_to("/")
                return Group(tuple(_upwards(_inside(top, mount.root, path), top)), version)
    return None


def limits(group: Group) -> Iterator[Limit]:
    """Of the group and of those around it, where one is set and can be read."""
    for folder in group.folders:
        with suppress(OSError, ValueError):
            total = _limit_of(folder, group.version)
            if total is not None:
                yield Limit(total, _used(folder, group.version))


def oom_kills(group: Group) -> int:
    """Processes that the kernel has killed in the group for want of memory. Raises OSError."""
    name = "memory.oom_control" if group.version == 1 else "memory.events"
    return _stats(group.folders[0] / name).get("oom_kill", 0)


def _limit_of(folder: Path, version: int) -> int | None:
    """None: none is set, or this level has no memory controller."""
    if version == 1:
        found = [_number(folder / "memory.limit_in_bytes")]
    else:
        found = [_number(folder / "memory.max"), _number(folder / "memory.high")]
    set_ones = [number for number in found if number is not None and number < _UNLIMITED]
    return min(set_ones, default=None)


def _used(folder: Path, version: int) -> int:
    """Before the kernel kills anybody it makes room from pages of files: of those that nobody has
    used lately, and then of the others, which of weights are those that were read twice. Programs
    that run are pages of files, too: what is mapped is not given up.
    """
    usage = folder / ("memory.usage_in_bytes" if version == 1 else "memory.current")
    stat = _stats(folder / "memory.stat")
    inactive, active, mapped = (stat.get(key, 0) for key in _OF_FILES[version])
    return max(0, int(usage.read_text()) - inactive - max(0, active - mapped))


def _stats(file: Path) -> dict[str, int]:
    pairs = (line.partition(" ") for line in file.read_text().splitlines())
    return {name: int(value) for name, _, value in pairs}


def _number(file: Path) -> int | None:
    """None: `max`, or there is no such file."""
    try:
        text = file.read_text().strip()
    except FileNotFoundError:
        return None
    return None if text == "max" else int(text)


def _memberships(cgroup: str) -> dict[str, PurePosixPath]:
    """Paths by controller; that of version 2 by the empty name."""
    found = {}
    for line in cgroup.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            found[controller] = PurePosixPath(path)
    return found


@dataclass(frozen=True, slots=True)
class _Mount:
    """Where a hierarchy can be seen, and from which of its groups on."""

    point: PurePosixPath
    root: PurePosixPath
    version: int


def _mounts(mountinfo: str) -> Iterator[_Mount]:
    """Those in which memory is counted, or may be."""
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        version = {"cgroup": 1, "cgroup2": 2}.get(kind)
        if version is None or (version == 1 and "memory" not in options.split(",")):
            continue
        root, point = (PurePosixPath(_plain(text)) for text in before.split(" ")[3:5])
        yield _Mount(point, root, version)


def _plain(text: str) -> str:
    """The kernel writes a space as \\040."""
    return _OCTAL.sub(lambda found: chr(int(found[1], 8)), text)


def _upwards(folder: Path, top: Path) -> Iterator[Path]:
    """In the hierarchy that `top` is the root of."""
    yield folder
    for parent in folder.parents:
        if not parent.is_relative_to(top):
            return
        yield parent


def _inside(top: Path, root: PurePosixPath, path: PurePosixPath) -> Path:
    """The folder of a group below a mount. In a container its path may be one of the host, which
    cannot be seen from here: then what is mounted is the container's own group.
    """
    if path.is_relative_to(root) and ".." not in path.parts:
        folder = top / path.relative_to(root)
        if folder.is_dir():
            return folder
    return top
