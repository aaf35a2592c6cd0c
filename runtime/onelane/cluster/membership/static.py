"""The members that the shard was started with; the placement never changes."""

import asyncio
from collections.abc import AsyncIterator

from onelane.core.placement import Placement


class StaticMembership:
    """See `onelane.cluster.membership.Membership`."""

    def __init__(self, placement: Placement) -> None:
        self._placement = placement

    def offer(self, placement: Placement) -> None:
        """Ignored: these members are fixed."""

    async def watch(self) -> AsyncIterator[Placement]:
        yield self._placement
        await asyncio.Event().wait()
