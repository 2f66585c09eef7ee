"""One log format: a JSON object per line for machines, or a plain line for people."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime

from mlxd.core.lines import json_line, one_line
from mlxd.core.traces import trace_of
from mlxd.telemetry.log_file import LogFile, Target
from mlxd.telemetry.sink import Sink

_EXTRA = ("event", "request", "tenant", "key", "model", "seconds")


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
        if trace := _trace_of(record):
            line["trace"] = trace
        return json_line(line)


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
        trace = _trace_of(record)
        lines = trace.split("\n") if trace else []
        return "\n".join([text, *(f"  {one_line(line)}" for line in lines)])


def _trace_of(record: logging.LogRecord) -> str:
    """Of what was raised, without what it may quote; empty: nothing was."""
    error = record.exc_info[1] if record.exc_info else None
    return trace_of(error) if error is not None else ""


def configure(level: str, style: str, target: Target | None = None) -> None:
    """Send the log of mlxd to `target`, else to stderr. `style` is json or text."""
    root, before = logging.getLogger(), _handler()
    stderr = _stderr() or Sink(_descriptor())
    after = _to_file(target, before, stderr) if target is not None else stderr
    for handler in (stderr, after):
        handler.setFormatter(JsonLines() if style == "json" else PlainLines())
    root.handlers[:] = [after]
    if after is not before:
        if isinstance(before, LogFile):
            after.lost += before.lost
        _tell_move(before, after, stderr)
    root.setLevel(logging.WARNING)
    logging.getLogger("mlxd").setLevel(level.upper())


def place() -> str:
    """Its file, or `stderr`."""
    file = _file()
    return str(file.target.path) if file is not None else "stderr"


def lost() -> int:
    """Lines that could not be written."""
    return sum(one.lost for one in (_stderr(), _file()) if one is not None)


def warnings() -> list[str]:
    """For people."""
    file = _file()
    return [file.failure] if file is not None and file.failure else []


def _to_file(target: Target, before: Sink | LogFile | None, stderr: Sink) -> Sink | LogFile:
    """The same as before, if its path is."""
    if isinstance(before, LogFile) and before.target.path == target.path:
        before.follow(target)
        return before
    return LogFile(target, stderr)


def _tell_move(before: Sink | LogFile | None, after: Sink | LogFile, stderr: Sink) -> None:
    """Where the log was, and where somebody may look for it."""
    where = after.target.path if isinstance(after, LogFile) else "stderr"
    words = f"the log goes to {where}"
    record = logging.LogRecord("mlxd", logging.INFO, __file__, 0, words, (), None)
    if isinstance(after, LogFile):
        stderr.handle(record)
    if isinstance(before, LogFile):
        before.handle(record)
        before.finish()


def _handler() -> Sink | LogFile | None:
    """What `configure` has put there."""
    ours = (one for one in logging.getLogger().handlers if isinstance(one, Sink | LogFile))
    return next(ours, None)


def _stderr() -> Sink | None:
    handler = _handler()
    return handler.stderr if isinstance(handler, LogFile) else handler


def _file() -> LogFile | None:
    handler = _handler()
    return handler if isinstance(handler, LogFile) else None


def _descriptor() -> int:
    """Of stderr; -1: this process was started without one."""
    try:
        return sys.stderr.fileno() if sys.stderr is not None else -1
    except (OSError, ValueError):
        return -1
