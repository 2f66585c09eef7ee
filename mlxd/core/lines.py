"""Text that stays on its line, and moves nothing on a terminal, whatever is in it."""

from __future__ import annotations

import json
import re
from typing import Any

_UNSHOWN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
"""Control characters, line breaks of all kinds, what turns text around, half characters."""


def one_line(text: str) -> str:
    """Line breaks and control characters escaped: what a client sends cannot forge a line."""
    return _UNSHOWN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def json_line(value: Any) -> str:
    """JSON that a terminal may show, and that is one line by anyone's count."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return _UNSHOWN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
