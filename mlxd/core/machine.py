"""Which machine this is, in words: rates that were measured on another say nothing of it."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from functools import cache
from pathlib import Path
from typing import Any

_BRAND = b"machdep.cpu.brand_string"
_MOST_BYTES = 256


@cache
def machine() -> str:
    """Processor, cores and memory: `Apple M3 Max, 16 cores, 128 GiB`."""
    return f"{processor()}, {os.cpu_count() or 1} cores, {_memory_gib()} GiB"


@cache
def processor() -> str:
    """As its maker calls it, else its architecture."""
    found = _apple() if sys.platform == "darwin" else _linux()
    return found or platform.processor() or platform.machine()


def _memory_gib() -> int:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30)
    except (OSError, ValueError):
        return 0


def _linux() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    names = (line for line in text.splitlines() if line.startswith("model name"))
    return next(names, "").partition(":")[2].strip()


def _apple() -> str:
    """sysctlbyname(3): name, buffer, pointer to its size, NULL, 0; 0 is success."""
    library: Any = ctypes.CDLL(None)
    found, size = ctypes.create_string_buffer(_MOST_BYTES), ctypes.c_size_t(_MOST_BYTES)
    if library.sysctlbyname(_BRAND, found, ctypes.byref(size), None, 0) != 0:
        return ""
    return found.value.decode(errors="replace")
