"""Channels whose server has left: each takes no new call, and is closed once its calls have ended.

Promises: none of them dials on for ever, or is kept once it is of no use.
"""

import asyncio
from typing import Protocol

LAST_CALLS_S = 3600.0
"""How long the calls of such a channel may take: their server ends them, at the latest as it ends itself."""


class Closable(Protocol):
    """A channel, or a subchannel."""

    async def close(self, grace: float | None) -> None:
        """Take no new call; let those that were made finish for `grace` seconds (None: 0), then cancel them."""


class RetiredChannels:
    """See the module. Owned by one event loop."""

    def __init__(self) -> None:
        self._closing: dict[Closable, asyncio.Task[None]] = {}

    def __len__(self) -> int:
        return len(self._closing)

    def add(self, channel: Closable) -> None:
        """Close a channel once its calls have ended."""
        task = self._closing[channel] = asyncio.get_running_loop().create_task(channel.close(LAST_CALLS_S))
        task.add_done_callback(lambda _: self._closing.pop(channel, None))

    async def aclose(self) -> None:
        """End their calls."""
        for channel, task in list(self._closing.items()):
            task.cancel()
            await channel.close(None)
