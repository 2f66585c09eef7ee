"""Text that stays on its line, whatever is in it."""

from __future__ import annotations

import re

_UNSHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def one_line(text: str) -> str:
    """Line breaks and control characters escaped: what a client sends cannot forge a line."""
    return _UNSHOWN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
