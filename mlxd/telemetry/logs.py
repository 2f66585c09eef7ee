"""One log format: a JSON object per line for machines, or a plain line for people."""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime

from mlxd.telemetry.sink import Sink

_EXTRA = ("event", "request", "model", "seconds")
_UNSHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


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
    """Time, level, message, and what is known of the request; one line, but for a trace, whose
    lines are indented: none of them looks like another record.
    """

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        message = record.getMessage()
        extra = [
            f"{key}={getattr(record, key)}" for key in _EXTRA if getattr(record, key, "") != ""
        ]
        text = one_line(" ".join([f"{time} {record.levelname.lower():<7} {message}", *extra]))
        trace = self.formatException(record.exc_info).split("\n") if record.exc_info else []
        return "\n".join([text, *(f"  {one_line(line)}" for line in trace)])


def one_line(text: str) -> str:
    """Line breaks and control characters escaped: what a client sends cannot forge a line."""
    return _UNSHOWN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def configure(level: str, style: str) -> None:
    """Send the log of mlxd to stderr. `style` is json or text."""
    root = logging.getLogger()
    sink = _sink() or Sink(_descriptor())
    sink.setFormatter(JsonLines() if style == "json" else PlainLines())
    root.handlers[:] = [sink]
    root.setLevel(logging.WARNING)
    logging.getLogger("mlxd").setLevel(level.upper())


def lost() -> int:
    """Lines that could not be written."""
    sink = _sink()
    return sink.lost if sink is not None else 0


def _sink() -> Sink | None:
    return next((one for one in logging.getLogger().handlers if isinstance(one, Sink)), None)


def _descriptor() -> int:
    """Of stderr; -1: this process was started without one."""
    try:
        return sys.stderr.fileno() if sys.stderr is not None else -1
    except (OSError, ValueError):
        return -1
