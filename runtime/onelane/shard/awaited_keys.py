"""Asks the old owners of keys that arrive for those whose calls are held here: they hand these over next.

An old owner sees by itself which keys are called by way of it. A call that came from elsewhere, such as a third shard,
would be held until its key has its turn, which of 100,000 keys is seconds later.
"""

import asyncio
from collections.abc import Callable
from itertools import islice

import grpc.aio

from onelane.core.handoff import Handoff
from onelane.core.placement import Member
from onelane.lane.arrivals import Arrivals
from onelane.shard.siblings import SiblingChannels
from onelane.v1 import siblings_pb2

ASK_S = 0.02
"""Between two looks at the calls that are held. Most are over by then: a change of few keys asks nobody."""
ASKING_S = 1.0
KEYS_ASKED = 256
"""Of one look, at most."""


class AwaitedKeys:
    """See the module. Owned by one lane."""

    def __init__(self, arrivals: Arrivals, channels: SiblingChannels) -> None:
        self._arrivals = arrivals
        self._channels = channels

    async def ask(self, change: Handoff, *, is_over: Callable[[], bool]) -> None:
        """Ask for each key once, or again where that has failed, until all have arrived or the change is over."""
        asked: set[str] = set()
        async with asyncio.TaskGroup() as requests:
            while change.has_arriving and not is_over():
                await asyncio.sleep(ASK_S)
                for sender, keys in self._held(change, asked).items():
                    requests.create_task(self._ask(change, sender, keys, asked))

    def _held(self, change: Handoff, asked: set[str]) -> dict[Member, list[str]]:
        """Old owner → keys for which it is to be asked, which count as asked from now on."""
        held: dict[Member, list[str]] = {}
        awaited = ((key, change.sender_of(key)) for key in self._arrivals.keys if key not in asked)
        for key, sender in islice(((key, sender) for key, sender in awaited if sender is not None), KEYS_ASKED):
            asked.add(key)
            held.setdefault(sender, []).append(key)
        return held

    async def _ask(self, change: Handoff, sender: Member, keys: list[str], asked: set[str]) -> None:
        request = siblings_pb2.HurryRequest(epoch=change.after.epoch, keys=keys)
        method = self._channels.to(sender).unary_unary("/onelane.v1.Siblings/Hurry")
        try:
            await method(request.SerializeToString(), timeout=ASKING_S)
        except Exception as error:
            # Such as a channel that is closed meanwhile. A life of an earlier release does not know the method.
            if not isinstance(error, grpc.aio.AioRpcError) or error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                asked.difference_update(keys)
