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
        if placement.epoch > self._placement.epoch:
            self._placement = placement
            self._newer.set()
            self._newer = asyncio.Event()

    async def watch(self) -> AsyncIterator[Placement]:
        while True:
            newer = self._newer
            yield self._placement
            await newer.wait()
