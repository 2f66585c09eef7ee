"""Whether a file is what its name says: a safetensors file whose header fits it."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from mlxd.hub.failure import PullFailure

_MAX_HEADER_BYTES = 64 * 2**20


def check_weights(path: Path, name: str) -> None:
    """Raises PullFailure for a header that is cut short, no JSON, or tells of bytes that are not
    there; OSError.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if length > min(size - 8, _MAX_HEADER_BYTES):
            raise PullFailure("corrupt", f"{name} is cut short, or no safetensors file")
        header = stream.read(length)
    try:
        entries = {k: v for k, v in json.loads(header).items() if k != "__metadata__"}
        end = max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise PullFailure("corrupt", f"the header of {name} is damaged") from error
    if end != size - 8 - length:
        raise PullFailure("corrupt", f"{name} holds other bytes than its header tells of")
