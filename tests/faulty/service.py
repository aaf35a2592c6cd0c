"""A service that breaks gRPC's rules to order, with a method for each kind of handler: see tests/faulty/misdeeds.py."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterator
from typing import Any

from tests.faulty.misdeeds import MISDEEDS, NOTHING
from tests.faulty.v1 import faulty_pb2_grpc
from tests.faulty.v1.faulty_pb2 import Order, Reply


class Faulty(faulty_pb2_grpc.FaultyServicer):
    def __init__(self) -> None:
        self.held: dict[str, asyncio.Event] = {}

    async def Async(self, request: Order, context: Any) -> Any:
        return await misbehave(request, context)

    async def AsyncUpload(self, request_iterator: AsyncIterator[Order], context: Any) -> Any:
        async for order in request_iterator:
            if not order.waits:
                return await misbehave(order, context)
        return Reply()

    async def AsyncStream(self, request: Order, context: Any) -> AsyncIterator[Any]:
        if request.waits:
            yield Reply()
        yield await misbehave(request, context)

    async def Writer(self, request: Order, context: Any) -> Any:  # type: ignore[override]
        if request.waits:
            await context.write(Reply())
        answer = await misbehave(request, context)
        return None if isinstance(answer, Reply) else answer

    def Plain(self, request: Order, context: Any) -> Any:
        return misbehave_plainly(request, context)

    def PlainUpload(self, request_iterator: Iterator[Order], context: Any) -> Any:
        for order in request_iterator:
            if not order.waits:
                return misbehave_plainly(order, context)
        return Reply()

    def PlainStream(self, request_iterator: Iterator[Order], context: Any) -> Iterator[Any]:
        for order in request_iterator:
            yield Reply() if order.waits else misbehave_plainly(order, context)

    def PlainList(self, request: Order, context: Any) -> Any:
        answer = misbehave_plainly(request, context)
        return [answer] if isinstance(answer, Reply) else answer

    async def Hold(self, request: Order, context: Any) -> Reply:
        await self.held.setdefault(request.key, asyncio.Event()).wait()
        return Reply(text="held")

    async def Release(self, request: Order, context: Any) -> Reply:
        self.held.setdefault(request.key, asyncio.Event()).set()
        return Reply()


async def misbehave(order: Order, context: Any) -> Any:
    if order.waits:
        await asyncio.sleep(0)
    answer = MISDEEDS[order.misdeed].run(context)
    if inspect.iscoroutine(answer):
        answer = await answer
        return Reply()
    return Reply() if answer is NOTHING else answer


def misbehave_plainly(order: Order, context: Any) -> Any:
    answer = MISDEEDS[order.misdeed].run(context)
    return Reply() if answer is NOTHING else answer
