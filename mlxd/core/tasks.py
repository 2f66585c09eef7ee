"""Tasks that nobody awaits while they run."""

from __future__ import annotations

import asyncio
import logging

log = logging.getLogger(__name__)


def tell_defect(task: asyncio.Task[None]) -> None:
    """To be told of its end, for one that no exception should end: it would do so in silence."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("the %s has ended: a defect of mlxd", task.get_name(), exc_info=error)
