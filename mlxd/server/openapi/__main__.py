"""`python -m mlxd.server.openapi`, in the repository's root: writes docs/reference/openapi.json."""

from __future__ import annotations

from pathlib import Path

from mlxd.server.openapi.document import document
from mlxd.server.openapi.written import written

PLACE = Path("docs", "reference", "openapi.json")


def text() -> str:
    """The whole of that file."""
    return written(document()) + "\n"


if __name__ == "__main__":
    PLACE.write_text(text(), encoding="utf-8")
