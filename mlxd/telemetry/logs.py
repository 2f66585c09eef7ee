"""One log format: a JSON object per line for machines, or a plain line for people."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

_EXTRA = ("request", "model", "seconds")


class JsonLines(logging.Formatter):
    """One object per line; a line break in a message cannot forge another line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {key: getattr(record, key) for key in _EXTRA if getattr(record, key, "") != ""}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class PlainLines(logging.Formatter):
    """Time, level, message, and what is known of the request."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        message = record.getMessage().replace("\r", "\\r")
        extra = [
            f"{key}={getattr(record, key)}" for key in _EXTRA if getattr(record, key, "") != ""
        ]
        text = " ".join([f"{time} {record.levelname.lower():<7} {message}", *extra])
        return text + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


def configure(level: str, style: str) -> None:
    """Send the log of mlxd to stderr. `style` is json or text."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if style == "json" else PlainLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("mlxd").setLevel(level.upper())
