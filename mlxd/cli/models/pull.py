"""`mlxd pull`: a line that moves on a terminal, and one now and then anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from mlxd.cli import exits
from mlxd.cli.admin import AdminClient
from mlxd.cli.models.asking import asking, failed, print_json
from mlxd.cli.models.words import duration, size
from mlxd.core.lines import one_line

Json = dict[str, Any]
_EVERY_PERCENT = 10
_SPEED_SECONDS = 10.0
"""Over which the speed is told."""


def pull(policies: str | None, state: str | None, name: str, *, as_json: bool) -> int:
    """Returns when it is there, or cannot be."""

    def ask(daemon: AdminClient) -> int:
        told = Told(name, sys.stdout)
        for record in daemon.stream("/admin/pull", {"model": name}):
            if as_json:
                print_json(record)
            if "error" in record:
                told.end()
                return exits.FAILED if as_json else failed(record["error"], as_json=False)
            if not as_json:
                told.tell(record)
        return exits.DONE

    try:
        return asking(policies, state, ask, as_json=as_json)
    except KeyboardInterrupt:
        print(f"\nmlxd: stopped; `mlxd pull {name}` goes on from here", file=sys.stderr)
        return 130


class Told:
    """What was said last, so that the same is not said again."""

    def __init__(self, name: str, out: TextIO, now: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._out = out
        self._now = now
        self._moves = out.isatty()
        self._parts: dict[str, tuple[int, int]] = {}
        self._seen: list[tuple[float, int]] = []
        self._last = 0
        self._moving = False
        self._status = ""

    def tell(self, record: Json) -> None:
        if "digest" in record:
            self._parts[record["digest"]] = (record["total"], record.get("completed", 0))
            self._progress()
        elif record["status"] == "success":
            self._line(f"{self._name} is there{self._whole()}", last=True)
        elif record["status"] != self._status:
            self._status = record["status"]
            self._line(f"{self._name}: {self._status}", last=not self._moves)

    def end(self) -> None:
        """What is said next is no progress: it begins a line."""
        if self._moving:
            self._out.write("\n")
            self._out.flush()

    def _whole(self) -> str:
        total = sum(total for total, _ in self._parts.values())
        return f", {size(total)}" if total else ""

    def _progress(self) -> None:
        total = sum(total for total, _ in self._parts.values())
        have = sum(have for _, have in self._parts.values())
        percent = 100 * have // total if total else 100
        if self._moves:
            self._line(
                f"{self._name}: {percent} % of {size(total)}{self._speed(have, total)}", last=False
            )
        elif percent >= self._last + _EVERY_PERCENT:
            self._last = percent - percent % _EVERY_PERCENT
            self._line(f"{self._name}: {percent} % of {size(total)}", last=True)

    def _speed(self, have: int, total: int) -> str:
        """Over the last seconds, and how long it takes at that."""
        now = self._now()
        self._seen = [one for one in self._seen if now - one[0] <= _SPEED_SECONDS]
        self._seen.append((now, have))
        began, first = self._seen[0]
        if now - began < 1.0 or have <= first:
            return ""
        speed = (have - first) / (now - began)
        return f", {size(speed)}/s, {duration((total - have) / speed)} left"

    def _line(self, words: str, *, last: bool) -> None:
        """Over the line that moves; the `last` one stays."""
        self._moving = not last
        before = "\r\x1b[K" if self._moves else ""
        after = "\n" if last else ""
        self._out.write(f"{before}{one_line(words)}{after}")
        self._out.flush()
