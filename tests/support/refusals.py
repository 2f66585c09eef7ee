"""What a refusal must say in each API, and what in none."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

from mlxd import __version__
from tests.support.smuggling import Answer

OLLAMA, OPENAI, ANTHROPIC = PATHS = ("/api/chat", "/v1/chat/completions", "/v1/messages")
"""One of each API."""
LEAKS = (
    "aiohttp", "uvloop", "msgspec", "pydantic", "python", "traceback", "errno", ".py", "llhttp",
    __version__, socket.gethostname().lower(), str(Path.home()), str(Path.cwd()), "/tmp/", "/var/",
)  # fmt: skip
"""In lower case: who answers, in which version, and where on which machine."""
_BANNER = re.compile(r"^server: *([^\r\n]*)", re.IGNORECASE | re.MULTILINE)


def words_of(path: str, answer: Answer) -> str:
    """The message of a refusal on a path, once its form is checked."""
    body: dict[str, Any] = json.loads(answer.body)
    error = body["error"]
    if path.startswith("/v1/messages"):
        assert body["type"] == "error"
        assert body["request_id"] == answer.id
        assert isinstance(error["type"], str)
        words = error["message"]
    elif path.startswith("/v1/"):
        assert {"message", "type", "param", "code"} <= error.keys()
        words = error["message"]
    else:
        assert body.keys() == {"error"}
        words = error
    assert isinstance(words, str)
    assert words
    assert leaks_of(answer) == []
    return words


def leaks_of(answer: Answer) -> list[str]:
    """What it says that is nobody's business."""
    head, body = answer.head.decode("latin-1"), answer.body.decode()
    banners = _BANNER.findall(head)
    said = (_BANNER.sub("", head) + body).lower()
    found = [leak for leak in LEAKS if leak.lower() in said]
    return found + [banner for banner in banners if banner != "mlxd"]
