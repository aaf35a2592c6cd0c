"""Tasks of the supervisor that end alone: the failure of one ends neither the supervisor nor an app."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

log = logging.getLogger("onelane.supervisor")
AGAIN_S = 1.0
"""Between the failure of a task that runs for ever and its next beginning."""


async def guarded(work: Callable[..., Awaitable[object]], *arguments: Any) -> bool:
    """Run `work`, and log its failure; whether it has succeeded."""
    try:
        await work(*arguments)
    except Exception:
        log.exception("supervisor.task_failed task=%s", getattr(work, "__qualname__", work))
        return False
    return True


async def guarded_for_ever(work: Callable[[], Awaitable[object]]) -> None:
    """Run `work` until it returns, and anew whenever it fails."""
    while True:
        if await guarded(work):
            return
        await anyio.sleep(AGAIN_S)
