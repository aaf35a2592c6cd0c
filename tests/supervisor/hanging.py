"""The echo service in a shard whose part in a change hangs once, as by a defect of the runtime, where it is told so."""

import asyncio
import os
from pathlib import Path

from onelane.core.handoff import Handoff
from onelane.shard.handoff import HandoffCarrier

from tests.echo.service import Echo as Echo

HANGS = "TEST_HANGS"
"""The variable that names a file: the next life that is to find out which keys leave it removes the file, and hangs."""
_scan = HandoffCarrier._scan


async def _scan_or_hang(carrier: HandoffCarrier, change: Handoff) -> None:
    if _is_told():
        await asyncio.Event().wait()
    await _scan(carrier, change)


def _is_told() -> bool:
    try:
        Path(os.environ.get(HANGS, "")).unlink()
    except OSError:
        return False
    return True


HandoffCarrier._scan = _scan_or_hang  # type: ignore[assignment,method-assign]
