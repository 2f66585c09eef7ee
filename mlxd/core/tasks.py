"""Tasks that nobody awaits while they run."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

log = logging.getLogger(__name__)


def tell_defect(task: asyncio.Task[None]) -> None:
    """To be told of its end, for one that no exception should end: it would do so in silence."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("the %s has ended: a defect of mlxd", task.get_name(), exc_info=error)


def tell_unheard(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The event loop's handler of what nobody else hears of. Its own words show the arguments of a
    callback, and what a task raised.
    """
    task = context.get("task") or context.get("future")
    what = f"the {task.get_name()}" if isinstance(task, asyncio.Task) else "a callback"
    log.error("%s has failed: a defect of mlxd", what, exc_info=context.get("exception"))
