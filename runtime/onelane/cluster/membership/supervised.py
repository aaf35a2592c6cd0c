"""The members that the machine's supervisor sends."""

import asyncio
from collections.abc import AsyncIterator

from onelane.core.placement import Placement


class SupervisedMembership:
    """See `onelane.cluster.membership.Membership`. Owned by one lane."""

    def __init__(self, placement: Placement) -> None:
        self._placement = placement
        self._newer = asyncio.Event()

    def offer(self, placement: Placement) -> None:
        # In the same epoch a shard may have its next life at another socket, in a cluster.
        is_moved = placement.epoch == self._placement.epoch and placement.members != self._placement.members
        if placement.epoch > self._placement.epoch or is_moved:
            self._placement = placement
            self._newer.set()
            self._newer = asyncio.Event()

    async def watch(self) -> AsyncIterator[Placement]:
        while True:
            newer = self._newer
            yield self._placement
            await newer.wait()
