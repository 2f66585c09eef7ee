"""As many open files as the system lets the daemon have."""

from __future__ import annotations

import resource
from collections.abc import Callable

FEW = 1024
_WANTED = (65536, 61440, 24576, 10240, 4096)
"""macOS names no limit, and refuses all above its `kern.maxfilesperproc`."""

Limits = tuple[int, int]


def raise_file_limit(
    getrlimit: Callable[[int], Limits] = resource.getrlimit,
    setrlimit: Callable[[int, Limits], None] = resource.setrlimit,
) -> list[str]:
    """launchd starts with a soft limit of 256 files. Returns a warning if few are left at that."""
    soft, hard = getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return []
    boundless = hard == resource.RLIM_INFINITY
    for wanted in _WANTED if boundless else (hard, *(n for n in _WANTED if n < hard)):
        if wanted <= soft:
            break
        try:
            setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (ValueError, OSError):
            continue
        soft = wanted
        break
    if soft >= FEW:
        return []
    return [f"the daemon may have no more than {soft} files open (ulimit -n): connections are few"]
