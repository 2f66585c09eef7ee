"""Which origins of web pages `clients.cors.allow_origins` names."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mlxd.core.wildcard import matches

_PORT = re.compile(r":[0-9]{1,5}$")
_NOBODY = ("https://nobody.invalid", "http://nobody.invalid", "https://nobody.invalid:8443")
"""Origins that no list has."""


def origin_allowed(origin: str, patterns: Sequence[str]) -> bool:
    """`:*` at the end of a pattern stands for any port and for none."""
    asked = origin.lower()
    return any(
        matches(pattern.lower().removesuffix(":*"), _PORT.sub("", asked))
        if pattern.endswith(":*")
        else matches(pattern.lower(), asked)
        for pattern in patterns
    )


def for_everybody(pattern: str) -> bool:
    """Whether pages of any site match it: `*`, and such as `https://*`."""
    return any(origin_allowed(origin, [pattern]) for origin in _NOBODY)
