"""`mlxd status --watch`: the same again and again, in place."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from mlxd.cli import exits
from mlxd.cli.client import NoAnswer, OtherVersion, address_of, health_of, silence
from mlxd.cli.status import lines
from mlxd.core import places
from mlxd.core.lines import one_line

Json = dict[str, Any]

EVERY_SECONDS = 1.0
_LABEL = 10
"""Columns of what a line is about."""
_STYLES = {"warning": "yellow", "event": "dim"}
_STATES = {"healthy": "green", "warning": "yellow", "degraded": "yellow"}


def watch(policies: str | None, state: str | None, *, rounds: int | None = None) -> int:
    """Until Ctrl-C, or so many `rounds`. To what is no terminal, one block after another."""
    console = Console(highlight=False, soft_wrap=False)
    blocks = _blocks(policies, state, rounds)
    if not console.is_terminal:
        for block in blocks:
            print(block.plain, flush=True)
        return exits.DONE
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            for block in blocks:
                live.update(block, refresh=True)
    except KeyboardInterrupt:
        pass
    return exits.DONE


def _blocks(policies: str | None, state: str | None, rounds: int | None) -> Iterator[Text]:
    shown = 0
    while rounds is None or shown < rounds:
        if shown:
            time.sleep(EVERY_SECONDS)
        yield _block(policies, state)
        shown += 1


def _block(policies: str | None, state: str | None) -> Text:
    """Looked for anew each time: a daemon may end, and another one begin elsewhere."""
    found = places.find(policies, state)
    try:
        health = health_of(found)
    except NoAnswer as error:
        return Text(one_line(silence(found, error)[1]), style="red")
    if health.get("service") != "mlxd":
        return Text("what answers there is not mlxd", style="red")
    return styled(map(one_line, _lines(health, address_of(found))), str(health.get("status")))


def _lines(health: Json, address: tuple[str, int]) -> Iterator[str]:
    """Of a daemon of another version what it says: an upgrade may restart it meanwhile."""
    try:
        yield from lines(health, address)
    except OtherVersion as error:
        yield f"warning   {error}"


def styled(said: Iterator[str], status: str) -> Text:
    """Plain words in their places; colour only where something is to be seen."""
    block = Text(no_wrap=True, overflow="ellipsis")
    for number, line in enumerate(said):
        label, words = line[:_LABEL], line[_LABEL:]
        if number == 0:
            block.append(line, style=f"bold {_STATES.get(status, 'red')}")
        else:
            block.append(label, style="bold")
            block.append(words, style=_STYLES.get(label.strip(), ""))
        block.append("\n")
    return block
