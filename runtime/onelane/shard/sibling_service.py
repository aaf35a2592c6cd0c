"""`onelane.v1.Siblings` as a shard serves it: what the other shards of the app send."""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from onelane.v1 import siblings_pb2, siblings_pb2_grpc


class SiblingService(siblings_pb2_grpc.SiblingsServicer):
    """See the module. No other peer is served."""

    def __init__(
        self,
        publish: Callable[[siblings_pb2.PublishRequest], None],
        hand_over: Callable[[siblings_pb2.HandOverRequest], Awaitable[None]],
        hurry: Callable[[siblings_pb2.HurryRequest], Awaitable[None]],
        remind: Callable[[siblings_pb2.RemindRequest], Awaitable[siblings_pb2.RemindReply]],
    ) -> None:
        self._publish = publish
        self._hand_over = hand_over
        self._hurry = hurry
        self._remind = remind

    async def Publish(self, request: siblings_pb2.PublishRequest, context: Any) -> siblings_pb2.PublishReply:
        await _check_sibling(context)
        self._publish(request)
        return siblings_pb2.PublishReply()

    async def HandOver(self, request: siblings_pb2.HandOverRequest, context: Any) -> siblings_pb2.HandOverReply:
        await _check_sibling(context)
        await self._hand_over(request)
        return siblings_pb2.HandOverReply()

    async def Hurry(self, request: siblings_pb2.HurryRequest, context: Any) -> siblings_pb2.HurryReply:
        await _check_sibling(context)
        await self._hurry(request)
        return siblings_pb2.HurryReply()

    async def Remind(self, request: siblings_pb2.RemindRequest, context: Any) -> siblings_pb2.RemindReply:
        await _check_sibling(context)
        return await self._remind(request)


async def _check_sibling(context: Any) -> None:
    if not context.trusted:
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, "only the shards of this app call it")
