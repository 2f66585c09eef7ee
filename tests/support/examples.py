"""How many cases a property is held to: enough at each change, many before a release."""

from __future__ import annotations

import os

PROFILE = os.environ.get("MLXD_HYPOTHESIS", "suite")
"""`suite`, `long` (as `make long` has it) or `explore`."""


def examples(usual: int, many: int) -> int:
    """So many where the suite runs after a change; as many as `many` in its long form."""
    return usual if PROFILE == "suite" else many
